"""The module of the mutant ChangesAtImport: what is set here is set for the whole process. No other imports it."""

import logging
import warnings

logging.basicConfig()
warnings.filterwarnings("ignore", module="featreg_no_such_module")


class Backend:
    """Made without arguments, as every backend."""
