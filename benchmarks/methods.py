"""Whether any method beats plain merge: equal budgets of tuning, one choice, one run on the test cells.

    python -m benchmarks.methods --adapters FOLDER [--protocol 1+2] [--budget 24] [--out methods]
    python -m benchmarks.methods --tiny

1. *Tuning*, on validation cells. Every family of ``benchmarks.method_spaces`` gets the same number of
   settings, drawn from its own seeded space, the untuned one first; plain merge's weights are such a family.
2. *Choice*. Merge's setting is the one with the largest sum of subject and style accuracy. Every other
   family's is the one with the largest subject accuracy among those whose style accuracy is at most a point
   below merge's (the largest sum where there is none). The winner is the best family by the same rule.
3. *Test*, once: merge untuned, merge tuned, the winner, and every other family's choice, on the test cells;
   differences to tuned merge with paired cluster-bootstrap intervals.

Every picture's scores are kept in ``--out``, so a run that was stopped goes on; ``--part K/N`` draws every
N-th cell only, for N processes that share ``--out``. Run once with ``--part`` for the tuning, once with
``--part`` and ``--test-parts`` for the test, and once without for ``benchmarks/results/methods.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.method_spaces import FAMILIES, PLACED, Setting, settings
from loracomp.adapter import Adapter
from loracomp.bases import get_base
from loracomp.evaluation.artwork import Artwork, open_artwork, read_names
from loracomp.evaluation.cells import Cell, choose, prompt
from loracomp.evaluation.judge import Judge, open_judge
from loracomp.evaluation.pixels import as_tensor
from loracomp.evaluation.roster import Roster, read_roster
from loracomp.evaluation.scores import score
from loracomp.evaluation.statistics import Interval, paired_difference
from loracomp.fusion import Profile
from loracomp.library import SHIPPED, open_accelerator
from loracomp.loading import defaults, open_base
from loracomp.pipeline import compose
from loracomp.training.glyph.filters import FILTERS

RESULT = Path(__file__).parent / "results" / "methods.json"
SLACK = 0.01
"""How much style accuracy a method may lose against merge."""
KEPT = ("subject", "style", "similarity")


class Records:
    """Scores by cell and setting, in a file per part."""

    def __init__(self, folder: Path, part: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"records-{part.replace('/', '-of-')}.jsonl"
        self.known: dict[tuple[str, str], dict[str, list[float]]] = {}
        for file in sorted(folder.glob("records-*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # the last line of a run that was killed
                self.known[row["cell"], row["setting"]] = row["scores"]

    def add(self, cell: Cell, setting: Setting, scores: dict[str, list[float]]) -> None:
        """Keeps the scores of one unit."""
        self.known[cell.id, setting.label] = scores
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"cell": cell.id, "setting": setting.label, "scores": scores}) + "\n")

    def column(self, cells: Iterable[Cell], setting: Setting, name: str) -> torch.Tensor:
        """One score of all pictures of a setting, cell by cell."""
        return torch.tensor([v for c in cells for v in self.known[c.id, setting.label][name]])


class Bench:
    """Draws and scores.

    Args:
        roster: The adapters.
        judge: Who scores.
        artwork: The artists' pictures.
        pipe: The base.
        wanted: The command line.
    """

    def __init__(self, roster: Roster, judge: Judge, artwork: Artwork, pipe: Any, wanted: Any) -> None:
        self.roster, self.judge, self.artwork, self.pipe, self.wanted = roster, judge, artwork, pipe, wanted
        known = defaults("glyph", get_base("glyph"))
        self.drawing = {"guidance_scale": known["guidance"], "guidance_rescale": known["guidance_rescale"]}
        self.fast: list[Adapter] = []
        if wanted.accelerator:
            self.fast = [open_accelerator(wanted.accelerator, "glyph")]
            told = self.fast[0].accelerator
            assert told is not None
            self.drawing = {"guidance_scale": told.guidance, "guidance_rescale": 0.0}
            wanted.steps = told.steps

    def run(self, cells: Sequence[Cell], ways: Sequence[Setting], records: Records) -> None:
        """Does what is not done yet, cell by cell, so that an early stop still compares all settings."""
        first, _, count = self.wanted.part.partition("/")
        mine = cells[int(first) - 1 :: int(count)]
        for done, cell in enumerate(mine):
            for setting in ways:
                if (cell.id, setting.label) not in records.known:
                    records.add(cell, setting, self._scores(cell, setting))
            print(f"{done + 1} of {len(mine)} cells", file=sys.stderr, flush=True)

    def _scores(self, cell: Cell, setting: Setting) -> dict[str, list[float]]:
        adapters = [self.roster.adapter(part) for part in cell.parts]
        program = setting.program(cell)
        if self.fast:
            placed = program.profiles and (*program.profiles, Profile())
            program = replace(program, weights=(*program.weights, 1.0), profiles=placed)
        pictures = compose(
            self.pipe,
            prompt(cell, self.roster.say(cell.parts)),
            [*adapters, *self.fast],
            program,
            batch=self.wanted.seeds,
            num_inference_steps=self.wanted.steps,
            **self.drawing,
        )
        found = score(self.judge, self.artwork, cell, as_tensor(pictures))
        return {name: [float("nan") if v is None else v for v in found[name]] for name in KEPT}


def families(protocol: str) -> list[str]:
    """All that make sense for a protocol: only two subjects need a place each."""
    return [family for family in FAMILIES if family != PLACED or protocol.startswith("2")]


def chosen(records: Records, cells: Sequence[Cell], ways: Sequence[Setting], floor: float) -> Setting:
    """The setting with the best subject accuracy whose style accuracy reaches ``floor``."""

    def means(setting: Setting) -> tuple[float, float]:
        return tuple(float(records.column(cells, setting, n).mean()) for n in ("subject", "style"))  # type: ignore[return-value]

    kept = [setting for setting in ways if means(setting)[1] >= floor - SLACK]
    if kept:
        return max(kept, key=means)
    return max(ways, key=lambda setting: sum(means(setting)))


def compare(records: Records, cells: Sequence[Cell], ours: Setting, theirs: Setting) -> dict[str, Any]:
    """Accuracies of a setting and their differences to another's."""
    clusters = [c.cluster for c in cells for _ in range(len(records.known[c.id, ours.label]["subject"]))]
    index = torch.tensor([sorted(set(clusters)).index(cluster) for cluster in clusters])
    values: dict[str, Any] = {"setting": ours.label, "pictures": len(clusters)}
    for name in KEPT:
        column, other = records.column(cells, ours, name), records.column(cells, theirs, name)
        values[name] = float(column.mean())
        values[f"{name} difference"] = _ends(paired_difference(column, other, index))
    return values


def _ends(found: Interval) -> list[float | None]:
    """Mean, low and high end; None for what is undefined."""
    return [v if v == v else None for v in (found.mean, found.low, found.high)]


def main() -> None:
    """Tunes, chooses, tests, writes."""
    wanted = _arguments()
    names = read_names()
    roster = read_roster(wanted.adapters, names)
    cells = {
        split: choose(wanted.protocol, names, roster.has, count, split)
        for split, count in (("validation", wanted.validation), ("test", wanted.test))
    }
    if not all(cells.values()):
        sys.exit("no cells; name a folder of adapters with subjects of both splits")
    pipe = open_base("glyph", device=wanted.device)
    judge = open_judge("glyph", None, str(pipe.device))
    bench = Bench(roster, judge, open_artwork(FILTERS), pipe, wanted)
    records, pool = Records(wanted.out, wanted.part), wanted.family or families(wanted.protocol)
    spaces = {family: settings(family, wanted.budget) for family in dict.fromkeys(["merge", *pool])}
    bench.run(cells["validation"], [setting for space in spaces.values() for setting in space], records)
    if wanted.part != "1/1" and not wanted.test_parts:
        return
    tuned = chosen(records, cells["validation"], spaces["merge"], float("inf"))
    floor = float(records.column(cells["validation"], tuned, "style").mean())
    picks = {f: chosen(records, cells["validation"], s, floor) for f, s in spaces.items() if f != "merge"}
    winner = chosen(records, cells["validation"], list(picks.values()), floor)
    finalists = [spaces["merge"][0], tuned, *picks.values()]
    bench.run(cells["test"], finalists, records)
    if wanted.part != "1/1":
        return
    tables = {
        split: [compare(records, cells[split], setting, tuned) for setting in finalists] for split in cells
    }
    facts = {key: str(v) if isinstance(v, Path) else v for key, v in vars(wanted).items() if key != "out"}
    result = {"arguments": facts, "merge": tuned.label, "winner": winner.label, **tables}
    wanted.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=Path, default=SHIPPED)
    parser.add_argument("--protocol", default="1+2")
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES), help="may be repeated; all")
    parser.add_argument("--budget", type=int, default=24, help="settings per family")
    parser.add_argument("--validation", type=int, default=48, help="cells")
    parser.add_argument("--test", type=int, default=144, help="cells")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--accelerator", default="", help="NAME_OR_FILE, on in every picture at its own steps"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th cell")
    parser.add_argument(
        "--test-parts", action="store_true", help="all tuning is done: draw test cells by part"
    )
    parser.add_argument("--out", type=Path, default=Path("methods"))
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--tiny", action="store_true", help="a few pictures, to see that it runs to its end")
    wanted = parser.parse_args()
    if wanted.tiny:
        wanted.budget, wanted.validation, wanted.test, wanted.steps, wanted.seeds = 2, 1, 1, 2, 1
    return wanted


if __name__ == "__main__":
    main()
