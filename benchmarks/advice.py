"""Whether the advice of ``loracomp diagnose`` beats one method for all: ``python -m benchmarks.advice``.

    python -m benchmarks.advice --run RUN --adapters ROSTER

takes the folder of a finished run of ``loracomp benchmark compose`` and the adapters that it was made with.
For every cell that all its methods were drawn for it asks the rule that ``diagnose`` asks, looks up what the
recommended method scored there, and compares the mean of subject and style accuracy, and each alone, with

* one method for all cells: every one that was drawn, the best of them being known afterwards only;
* the best method of each cell, known afterwards: a ceiling that also counts luck; so beside it the method
  that was best with one seed, scored on the other seeds;
* other thresholds of the rule, chosen on the cells of one half of the subjects and scored on the other half.

Differences are paired by cell, with cluster-bootstrap intervals over subjects. Nothing is drawn; it takes
half a minute on one core. Writes ``benchmarks/results/advice.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.profiles import spearman
from loracomp.errors import FormatError
from loracomp.evaluation.artwork import read_names
from loracomp.evaluation.bench import rows
from loracomp.evaluation.cells import Cell
from loracomp.evaluation.ledger import Record
from loracomp.evaluation.roster import Roster, read_roster
from loracomp.evaluation.statistics import Interval, interval, paired_difference
from loracomp.fusion.advice import CONFLICT, IMBALANCE, advise
from loracomp.fusion.interference import interference

RESULT = Path(__file__).parent / "results" / "advice.json"
KINDS = ("subject", "style")
PAIR = ("merge", "lion")
"""What can be advised."""
BOTH = "mean of both"
NEVER = float("inf")
CONFLICTS = (CONFLICT, 0.0, 0.1, 0.15, 0.2, 0.25, 0.35, NEVER)
IMBALANCES = (IMBALANCE, 1.25, 1.5, 1.75, NEVER)
COUNTS = (2, 3, 4, 5)
"""Thresholds to choose from, the present ones first: cosine, ratio of norms, and fewest adapters for lion."""


@dataclass(frozen=True)
class Case:
    """A cell with what ``diagnose`` says of it and what every method scored.

    Attributes:
        cell: What was drawn.
        method: The method that is advised.
        reason: Why.
        conflict: Largest |cosine| of two adapters in a block.
        imbalance: Largest norm over smallest.
        scores: Subject and style accuracy of each picture by method, shape (seeds, 2).
    """

    cell: Cell
    method: str
    reason: str
    conflict: float
    imbalance: float
    scores: Mapping[str, Tensor]

    @property
    def half(self) -> str:
        """The half of the subjects that it belongs to; empty where its two subjects are of both."""
        halves = {"AB"[sha256(f"advice {slug}".encode()).digest()[0] % 2] for slug in self.cell.subjects}
        return halves.pop() if len(halves) == 1 else ""


Rule = Callable[[Case], Tensor]
"""What is scored in a case: subject and style accuracy, shape (2,)."""


def parse_cell(text: str) -> Cell:
    protocol, subjects, *looks = text.split("/")
    return Cell(protocol, tuple(subjects.split("+")), *("" if part == "-" else part for part in looks))


def read_cases(run: Path, roster: Roster) -> tuple[dict[str, Any], list[Case]]:
    """The settings of a run, and its complete cells.

    Raises:
        FormatError: The run lacks a method that can be advised, or was made with other adapters.
    """
    held = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    settings, methods = held["settings"], set[str]()
    table: dict[str, dict[str, Record]] = {}
    for line in (run / "records.jsonl").read_text(encoding="utf-8").splitlines():
        record = Record.from_json(line)
        table.setdefault(record.cell, {})[record.row] = record
        others = {row.name for row in rows(parse_cell(record.cell), ())}
        methods |= {record.row} - others
    if not methods.issuperset(PAIR):
        raise FormatError(f"{run}: was not made with {' and '.join(PAIR)}; name a run that was")
    for part, digest in held["adapters"].items():
        kind, name = part.split("/", 1)
        if not roster.has(kind, name) or not roster.adapter((kind, name)).digest.startswith(digest):
            raise FormatError(f"{run}: was made with another {part}; name the folder of its adapters")
    whole = {name: found for name, found in table.items() if methods <= found.keys()}
    return settings, [_case(parse_cell(c), found, methods, roster, settings) for c, found in whole.items()]


def _case(
    cell: Cell, records: Mapping[str, Record], methods: set[str], roster: Roster, settings: Mapping[str, Any]
) -> Case:
    adapters = [roster.adapter(part) for part in cell.parts]
    report = interference(adapters, [float(settings["weight"])] * len(adapters))
    found, norms = advise(report), report.whole.norms
    conflict = max(abs(value) for block in report.blocks for value in block.cosines if value is not None)
    scores = {
        name: torch.tensor([records[name].scores[kind] for kind in KINDS], dtype=torch.float64).T
        for name in sorted(methods, key=lambda name: (name != "merge", name != "lion", name))
    }
    return Case(cell, found.method, found.reason, conflict, max(norms) / min(norms), scores)


def fixed(method: str) -> Rule:
    """One method for all."""
    return lambda case: case.scores[method].mean(0)


def advised(case: Case) -> Tensor:
    """What ``diagnose`` says."""
    return case.scores[case.method].mean(0)


def ceiling(case: Case) -> Tensor:
    """The best method of the cell, known afterwards; merge, then lion, where several are."""
    return max((scores.mean(0) for scores in case.scores.values()), key=lambda pair: float(pair.sum()))


def told_by_a_seed(methods: Sequence[str]) -> Rule:
    """Of these methods the one that was best with one seed, scored on the other seeds; mean over seeds."""

    def rule(case: Case) -> Tensor:
        tables, found = [case.scores[name] for name in methods], []
        for seed in range(len(tables[0])):
            best = max(tables, key=lambda scores: float(scores[seed].sum()))
            found.append(torch.cat([best[:seed], best[seed + 1 :]]).mean(0))
        return torch.stack(found).mean(0)

    return rule


def threshold(conflict: float, imbalance: float, count: int) -> Rule:
    """Lion from so many adapters on where they conflict or are unequal, else merge."""

    def rule(case: Case) -> Tensor:
        apart = case.conflict >= conflict or case.imbalance >= imbalance
        return case.scores["lion" if apart and len(case.cell.parts) >= count else "merge"].mean(0)

    return rule


def accuracy(cases: Sequence[Case], rule: Rule) -> float:
    return float(torch.stack([rule(case) for case in cases]).mean())


def compare(cases: Sequence[Case], rules: Mapping[str, Rule], than: str) -> dict[str, Any]:
    """Every rule's accuracy, and its difference from that of ``than`` on the same cells."""
    names = sorted({case.cell.cluster for case in cases})
    clusters = torch.tensor([names.index(case.cell.cluster) for case in cases])
    tables = {name: _columns(cases, rule) for name, rule in rules.items()}
    return {
        name: {
            kind: {
                "value": _plain(interval(values, clusters)),
                "gain": _plain(paired_difference(values, tables[than][kind], clusters)),
            }
            for kind, values in table.items()
        }
        for name, table in tables.items()
    }


def _plain(found: Interval) -> dict[str, float]:
    return {name: round(getattr(found, name), 4) for name in ("mean", "low", "high")}


def _columns(cases: Sequence[Case], rule: Rule) -> dict[str, Tensor]:
    scores = torch.stack([rule(case) for case in cases])
    return {BOTH: scores.mean(1), **dict(zip(KINDS, scores.T, strict=True))}


def crossed(cases: Sequence[Case]) -> dict[str, Any]:
    """Thresholds, and the one best method, chosen on either half of the subjects and scored on the other."""
    halves = {name: [case for case in cases if case.half == name] for name in "AB"}
    grid = tuple(product(CONFLICTS, IMBALANCES, COUNTS))
    rules: dict[str, dict[str, Rule]] = {"chosen thresholds": {}, "chosen method": {}}
    chosen = {}
    for name, other in (("A", "B"), ("B", "A")):
        best = max(grid, key=lambda values: accuracy(halves[name], threshold(*values)))
        method = max(cases[0].scores, key=lambda method: accuracy(halves[name], fixed(method)))
        rules["chosen thresholds"][other], rules["chosen method"][other] = threshold(*best), fixed(method)
        plain = ["never" if value == NEVER else value for value in best]
        facts = dict(zip(("conflict", "imbalance", "adapters"), plain, strict=True))
        chosen[f"on {name}"] = {**facts, "method": method, "cells": len(halves[name])}

    def by_half(name: str) -> Rule:
        return lambda case: rules[name][case.half](case)

    everything: dict[str, Rule] = {"advice": advised, "merge": fixed("merge"), "lion": fixed("lion")}
    everything |= {name: by_half(name) for name in rules}
    return {"chosen": chosen, "rules": compare(halves["A"] + halves["B"], everything, "advice")}


def predictors(cases: Sequence[Case]) -> dict[str, float]:
    """Rank correlation of what the report tells with what lion gains on merge."""
    gains = [float((fixed("lion")(case) - fixed("merge")(case)).mean()) for case in cases]
    facts = {
        "conflict": [case.conflict for case in cases],
        "imbalance": [case.imbalance for case in cases],
        "adapters": [float(len(case.cell.parts)) for case in cases],
    }
    return {name: round(spearman(values, gains), 3) for name, values in facts.items()}


def show(title: str, table: Mapping[str, Any], than: str) -> None:
    """Prints a comparison."""
    print(
        f"\n{title}\n  {'':22}" + "".join(f"{kind:>14}" for kind in (BOTH, *KINDS)) + f"   {BOTH} less {than}"
    )
    for name, row in table.items():
        values = "".join(f"{row[kind]['value']['mean']:14.3f}" for kind in (BOTH, *KINDS))
        gain = row[BOTH]["gain"]
        print(f"  {name:22}{values}   {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")


def grouped(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """All cells, those of each protocol, and those for which each method is advised."""
    groups = {"all cells": list(cases)}
    for case in sorted(cases, key=lambda case: case.cell.protocol):
        groups.setdefault(case.cell.protocol, []).append(case)
    for method in PAIR:
        groups[f"where {method} is advised"] = [case for case in cases if case.method == method]
    return {title: group for title, group in groups.items() if group}


def examine(settings: Mapping[str, Any], cases: Sequence[Case]) -> dict[str, Any]:
    """Every comparison, printed as it is made."""
    methods = list(cases[0].scores)
    rules: dict[str, Rule] = {"advice": advised} | {name: fixed(name) for name in methods}
    rules["of two, by a seed"] = told_by_a_seed(PAIR)
    rules["of all, by a seed"] = told_by_a_seed(methods)
    rules["best of each cell"] = ceiling
    result: dict[str, Any] = {
        "settings": settings,
        "cells": [{"cell": c.cell.id, "method": c.method, "reason": c.reason, "half": c.half} for c in cases],
        "best single method": max(methods, key=lambda method: accuracy(cases, fixed(method))),
        "rank correlation with lion's gain": predictors(cases),
        "groups": {},
    }
    for title, group in grouped(cases).items():
        counts, table = Counter(case.method for case in group), compare(group, rules, "advice")
        gain = compare(group, {name: fixed(name) for name in PAIR}, "merge")["lion"]
        result["groups"][title] = {"cells": len(group), "advised": counts, "rules": table}
        result["groups"][title]["lion less merge"] = {kind: found["gain"] for kind, found in gain.items()}
        said = ", ".join(f"{method} {count}" for method, count in counts.items())
        show(f"{title}: {len(group)} cells; advised: {said}", table, "advice")
    result["halves"] = crossed(cases)
    show("chosen on one half of the subjects, scored on the other", result["halves"]["rules"], "advice")
    return result


def main() -> None:
    """Asks, compares, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of the benchmark")
    parser.add_argument("--adapters", type=Path, required=True, help="the adapters that it was made with")
    parser.add_argument("--result", type=Path, default=RESULT)
    wanted = parser.parse_args()
    try:
        settings, cases = read_cases(wanted.run, read_roster(wanted.adapters, read_names()))
    except FormatError as error:
        sys.exit(str(error))
    result = examine(settings, cases)
    correlations = result["rank correlation with lion's gain"]
    print(f"rank correlation with lion's gain: {correlations}\nchosen: {result['halves']['chosen']}")
    wanted.result.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
