"""From records to figures: means with intervals for every row, and what each costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from loracomp.evaluation.bench import NO_LORA, Plan, rows
from loracomp.evaluation.ledger import Key, Record
from loracomp.evaluation.scores import SCORES
from loracomp.evaluation.statistics import Interval, interval, paired_difference

BASELINE = "merge"
COSTS = {"time": "wall time over the no-LoRA row's", "memory": "peak memory over the no-LoRA row's"}
Figures = dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class Section:
    """The figures of one protocol at one number of steps.

    Attributes:
        protocol: See :mod:`loracomp.evaluation.cells`.
        steps: Denoising steps.
        cells: Number of cells that all rows are complete for.
        figures: Intervals by row and score; ``time`` and ``memory`` are ratios.
        gains: Paired differences from the baseline's row, by row and score.
    """

    protocol: str
    steps: int
    cells: int
    figures: Figures
    gains: Figures


def sections(plan: Plan, records: Mapping[Key, Record]) -> list[Section]:
    """A section per protocol and number of steps, from the cells whose rows are all there."""
    protocols = dict.fromkeys(cell.protocol for cell in plan.cells)
    return [_section(plan, records, protocol, steps) for steps in plan.steps for protocol in protocols]


def to_json(found: Sequence[Section], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything as plain values; None where there is no figure."""
    meanings = {name: score.meaning for name, score in SCORES.items()} | COSTS
    parts = [_plain(asdict(part)) for part in found]
    return {"settings": dict(settings), "scores": meanings, "sections": parts}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if value != value else value


def from_json(values: Mapping[str, Any]) -> list[Section]:
    """The sections that :func:`to_json` made; None is NaN again."""

    def intervals(table: Mapping[str, Any]) -> Figures:
        return {row: {name: _interval(one) for name, one in cols.items()} for row, cols in table.items()}

    return [
        Section(
            part["protocol"],
            part["steps"],
            part["cells"],
            intervals(part["figures"]),
            intervals(part["gains"]),
        )
        for part in values["sections"]
    ]


def _interval(values: Mapping[str, Any]) -> Interval:
    known: dict[str, Any] = {k: float("nan") if value is None else value for k, value in values.items()}
    return Interval(**known)


def _section(plan: Plan, records: Mapping[Key, Record], protocol: str, steps: int) -> Section:
    names: dict[str, None] = {}
    complete = []
    for cell in plan.cells:
        if cell.protocol != protocol:
            continue
        wanted = [row.name for row in rows(cell, plan.methods)]
        names.update(dict.fromkeys(wanted))
        if all((cell.id, steps, name) in records for name in wanted):
            complete.append(cell.id)
    table = {
        name: [records[c, steps, name] for c in complete if (c, steps, name) in records] for name in names
    }
    clusters = {record.cluster: i for i, record in enumerate(chain.from_iterable(table.values()))}
    figures, gains = {}, {}
    for name, found in table.items():
        figures[name] = _figures(found, clusters) | _costs(found, table[NO_LORA], clusters)
        if name != BASELINE and table.get(BASELINE) and found:
            gains[name] = _gains(found, table[BASELINE], clusters)
    return Section(protocol, steps, len(complete), figures, gains)


def _figures(records: Sequence[Record], clusters: Mapping[str, int]) -> dict[str, Interval]:
    return {name: interval(*_values(records, name, clusters)) for name in SCORES}


def _gains(
    ours: Sequence[Record], theirs: Sequence[Record], clusters: Mapping[str, int]
) -> dict[str, Interval]:
    """Differences on the same cells and seeds; a row with another number of pictures has its means."""
    other = {record.cell: record for record in theirs}
    pairs = [(record, other[record.cell]) for record in ours if record.cell in other]
    found = {}
    for name in SCORES:
        means = [torch.stack([_column(r, name).nanmean() for r in side]) for side in zip(*pairs, strict=True)]
        labels = torch.tensor([clusters[record.cluster] for record, _ in pairs])
        found[name] = paired_difference(means[0], means[1], labels)
    return found


def _costs(
    records: Sequence[Record], plain: Sequence[Record], clusters: Mapping[str, int]
) -> dict[str, Interval]:
    """Ratios to the no-LoRA row, cell by cell."""
    other = {record.cell: record for record in plain}
    reads: dict[str, Callable[[Record], float | None]] = {
        "time": lambda record: record.seconds,
        "memory": lambda record: record.peak,
    }
    found = {}
    for name, read in reads.items():
        ratios = [_ratio(read(r), read(other[r.cell])) if r.cell in other else float("nan") for r in records]
        labels = torch.tensor([clusters[record.cluster] for record in records])
        found[name] = interval(torch.tensor(ratios), labels)
    return found


def _ratio(ours: float | None, theirs: float | None) -> float:
    return ours / theirs if ours and theirs else float("nan")


def _column(record: Record, name: str) -> Tensor:
    values = [float("nan") if value is None else value for value in record.scores[name]]
    return torch.tensor(values, dtype=torch.float64)


def _values(records: Sequence[Record], name: str, clusters: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """All values of a score and the cluster of each."""
    columns = [_column(record, name) for record in records]
    labels = [torch.full((len(c),), clusters[r.cluster]) for c, r in zip(columns, records, strict=True)]
    if not columns:
        return torch.zeros(0), torch.zeros(0, dtype=torch.long)
    return torch.cat(columns), torch.cat(labels)
