"""The recipe's commands, in order: ``python -m loracomp.training.glyph COMMAND --help``."""

from __future__ import annotations

import argparse
from pathlib import Path

DATA = Path(".data")


def main() -> None:
    """Parse one command and run it."""
    parser = argparse.ArgumentParser(prog="python -m loracomp.training.glyph")
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="fetch the artwork packages and pack the icons")
    data.add_argument("--out", type=Path, default=DATA)
    examples = commands.add_parser("examples", help="write the small committed example folders")
    examples.add_argument("--data", type=Path, default=DATA)
    examples.add_argument("--out", type=Path, default=Path("examples"))
    args = parser.parse_args()
    _COMMANDS[args.command](args)


def _data(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.store import build

    print(build(args.out))


def _examples(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.examples import write_examples
    from loracomp.training.glyph.store import load

    store = load(args.data)
    write_examples(args.out, store.icons, store.subjects)


_COMMANDS = {"data": _data, "examples": _examples}

if __name__ == "__main__":
    main()
