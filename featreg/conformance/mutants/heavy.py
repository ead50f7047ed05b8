"""The light module of the mutant HeavyDeclaration, which is not light: it imports what the environment names."""

from __future__ import annotations

import importlib
import os

FACTORY = "FEATREG_MUTANT_FACTORY"

if FACTORY in os.environ:
    importlib.import_module(os.environ[FACTORY])
