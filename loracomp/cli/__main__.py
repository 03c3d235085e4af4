"""``python -m loracomp.cli``."""

from loracomp.cli import main

main()
