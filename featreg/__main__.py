"""``python -m featreg`` is the command ``featreg``."""

from featreg.cli.main import main

main()
