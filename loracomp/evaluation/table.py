"""A benchmark's figures as Markdown, and its pictures as contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loracomp.evaluation.bench import Plan, rows
from loracomp.evaluation.cells import Cell
from loracomp.evaluation.ledger import Ledger
from loracomp.evaluation.report import BASELINE, Section
from loracomp.evaluation.scores import SCORES
from loracomp.evaluation.sheet import contact_sheet
from loracomp.evaluation.statistics import Interval

if TYPE_CHECKING:
    from PIL.Image import Image

BETTER, WORSE = "▲", "▼"
SHOWN = 8


def markdown(found: Sequence[Section], settings: Mapping[str, Any], command: str) -> str:
    """The whole report: a table per section, with the command that made it and what columns mean."""
    lines = ["# GlyphBench", "", "```", command, "```", ""]
    lines += [f"{_settings(settings)}.", ""]
    for part in found:
        plural = "cell" if part.cells == 1 else "cells"
        lines += [f"## {part.protocol}, {part.steps} steps: {part.cells} {plural}", "", *_table(part), ""]
    lines.append("Means with 95 % intervals (cluster bootstrap over subjects).")
    lines.append(f"{BETTER} {WORSE}: better or worse than `{BASELINE}` on the same cells and seeds, at 95 %.")
    lines += ["", *(f"* **{score.title}**: {score.meaning}." for score in SCORES.values())]
    lines += ["* **time**, **memory**: wall time and peak memory relative to the no-LoRA row.", ""]
    return "\n".join(lines)


def sheet(plan: Plan, ledger: Ledger, part: Section, shown: int = SHOWN) -> Image:
    """The first seed of every row for the section's first cells, one column each."""
    cells = [cell for cell in plan.cells if cell.protocol == part.protocol][:shown]
    names = dict.fromkeys(row.name for cell in cells for row in rows(cell, plan.methods))
    pictures = [(name, [ledger.picture((cell.id, part.steps, name)) for cell in cells]) for name in names]
    title = f"GlyphBench {part.protocol}, {part.steps} steps"
    return contact_sheet(pictures, [label(cell) for cell in cells], title=title)


def label(cell: Cell) -> str:
    """A cell in a few words."""
    words = [" + ".join(slug.replace("-", " ") for slug in cell.subjects), cell.style, cell.filter]
    return ", ".join(word for word in (*words, cell.background) if word and word != "white")


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if not isinstance(value, dict))


def _table(part: Section) -> list[str]:
    columns = list(SCORES)
    heads = ["row", *(SCORES[name].title for name in columns), "time ×", "memory ×"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row, found in part.figures.items():
        marks = part.gains.get(row, {})
        cells = [_cell(found[name], SCORES[name].digits, marks.get(name)) for name in columns]
        costs = [_cell(found[name], 2, None, ends=False) for name in ("time", "memory")]
        lines.append("| " + " | ".join([row, *cells, *costs]) + " |")
    return lines


def _cell(value: Interval, digits: int, gain: Interval | None, ends: bool = True) -> str:
    if value.mean != value.mean:
        return "–"
    text = f"{value.mean:.{digits}f}"
    if ends and value.low == value.low:
        text += f" [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    if gain is not None and gain.excludes_zero:
        text += f" {BETTER if gain.low > 0 else WORSE}"
    return text
