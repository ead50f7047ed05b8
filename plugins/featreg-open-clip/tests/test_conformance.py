from featreg.conformance import suite

test_conformance = suite("open_clip")
