from featreg.conformance import suite

test_conformance = suite("onnx")
