"""``python -m loracomp``."""

from loracomp.cli import main

main()
