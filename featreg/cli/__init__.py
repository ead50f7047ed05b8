"""The command line, ``featreg``."""
