"""The sweep of every zoo: what featreg says of each model, held against the raw library's own forward pass.

``python -m zoo`` sweeps and writes ``docs/zoo.md`` and ``docs/zoo.json``, which say how to read them. This package is
no part of the distribution. Its oracles (:mod:`zoo.oracles`) never call featreg.
"""
