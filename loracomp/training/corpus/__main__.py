"""The corpus' commands, in order: ``python -m loracomp.training.corpus COMMAND --help``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from loracomp.errors import LoracompError

DATA = Path(".data")


def main(arguments: list[str] | None = None) -> None:
    """Parse one command and run it."""
    parser = argparse.ArgumentParser(prog="python -m loracomp.training.corpus")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (run, about) in _COMMANDS.items():
        command = commands.add_parser(name, help=about)
        command.set_defaults(run=run)
        command.add_argument("--data", type=Path, default=DATA, help="folder of icons.json.xz")
        command.add_argument("--out", type=Path, default=DATA / "corpus", help="folder of the corpus")
        if name in ("plan", "all"):
            command.add_argument("--seed", type=int, default=0)
            command.add_argument(
                "--sample",
                type=int,
                metavar="N",
                help="N adapters of small rank that show all kinds and splits",
            )
        if name in ("data", "all"):
            command.add_argument("--workers", type=int, default=os.cpu_count() or 1)
        if name in ("train", "all"):
            command.add_argument("--at-once", type=int)
            command.add_argument("--compile", action="store_true")
            command.add_argument("--graph", action="store_true")
            command.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except LoracompError as error:
        print(f"corpus: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _plan(args: argparse.Namespace) -> None:
    from loracomp.training.corpus.plan import VARIANTS, adapters, concepts, sample
    from loracomp.training.corpus.store import write_plan
    from loracomp.training.glyph.store import load

    wanted = concepts(load(args.data), args.seed)
    if args.sample:
        wanted = sample(wanted, -(-args.sample // len(VARIANTS)))
    planned = adapters(wanted, args.seed, small=bool(args.sample))[: args.sample]
    corpus = write_plan(args.out, planned)
    print(f"{args.out}: {len(corpus.adapters)} adapters of {len(corpus.concepts)} concepts")


def _data(args: argparse.Namespace) -> None:
    from loracomp.training.corpus.pictures import deal, render
    from loracomp.training.corpus.store import read_plan
    from loracomp.training.glyph.store import load

    begin, corpus = time.monotonic(), read_plan(args.out)
    render(corpus.concepts, load(args.data), args.out, args.workers)
    deal(corpus.adapters, args.out)
    print(f"{args.out}: data of {len(corpus.adapters)} adapters in {time.monotonic() - begin:.0f} s")


def _train(args: argparse.Namespace) -> None:
    from loracomp.training.corpus.store import ADAPTERS, MANIFEST
    from loracomp.training.interrupt import ctrl_c
    from loracomp.training.many.run import Ways, train_many
    from loracomp.training.progress import reporter

    note = {"event": "interrupt", "text": "finishing this step, then saving"}
    with reporter(sys.stderr, False) as report, ctrl_c(lambda: report(note)) as stop:
        ways = Ways(args.at_once, args.compile, args.graph, report, stop)
        done = train_many(args.out / MANIFEST, args.out / ADAPTERS, ways, device=args.device)
    print(f"{args.out}: {done['done']} adapters done, {done['failed']} failed, {done['seconds']:.0f} s")


def _manifest(args: argparse.Namespace) -> None:
    from loracomp.training.corpus.store import read_plan, write_table

    rows = write_table(args.out, read_plan(args.out))
    print(f"{args.out}: {len(rows)} adapters in the table")


def _all(args: argparse.Namespace) -> None:
    for run in (_plan, _data, _train, _manifest):
        run(args)


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str]] = {
    "plan": (_plan, "choose concepts and adapters"),
    "data": (_data, "draw the training pictures"),
    "train": (_train, "train all adapters, many at once"),
    "manifest": (_manifest, "write the table of finished adapters"),
    "all": (_all, "all of these"),
}

if __name__ == "__main__":
    main()
