"""How good the judge is on real pictures of cells that it never saw."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loracomp.training.glyph.augment import palette
from loracomp.training.glyph.cells import cell_icons, halves
from loracomp.training.glyph.filters import FILTERS, OWN_PAPER, over
from loracomp.training.glyph.splits import Cell, committed

if TYPE_CHECKING:
    from loracomp.training.glyph.judge import Judge
    from loracomp.training.glyph.pictures import Pictures


def held_out_cells() -> list[Cell]:
    """The committed held-out cells in their order."""
    return [(subject, style) for subject, style in committed("judge_cells.json")]


@torch.no_grad()
def cell_pictures(pictures: Pictures, cells: list[Cell], color: int = 0) -> Tensor:
    """The artist's picture of each cell, filtered where it asks: (cells, 3, 128, 128) in [0, 1]."""
    device = pictures.pixels.device
    back = palette(device)[color][None]
    out = []
    for icon, style in cell_icons(pictures.icons, cells):
        rgba = pictures.standard(torch.tensor([icon], device=device))
        paint = FILTERS.get(style, over)
        out.append(paint(rgba, back).clamp(0, 1))
    return torch.cat(out)


def calibrate(judge: Judge, pictures: Pictures, cells: list[Cell]) -> dict[str, float]:
    """Softmax scales that fit the calibration half best, for subject, style and color."""
    cells, _ = halves(cells)
    images = judge.embed_images(cell_pictures(pictures, cells))
    device = images.device
    subject = torch.tensor([judge.subjects.index(s) for s, _ in cells], device=device)
    style = torch.tensor([judge.styles.index(s) for _, s in cells], device=device)
    named = [i for i, (_, s) in enumerate(cells) if s not in OWN_PAPER]
    white = torch.zeros(len(named), dtype=torch.long, device=device)
    rows = {
        "subject": (images @ judge._subjects.T, subject),
        "style": (images @ judge._styles.T, style),
        "color": (images[named] @ judge._colors.T, white),
    }
    return {kind: _best_scale(cosines, truth) for kind, (cosines, truth) in rows.items()}


def _best_scale(cosines: Tensor, truth: Tensor) -> float:
    grid = [5 * 1.08**i for i in range(48)]
    losses = [float(torch.nn.functional.cross_entropy(s * cosines, truth)) for s in grid]
    return round(grid[losses.index(min(losses))], 3)


def report(judge: Judge, pictures: Pictures, cells: list[Cell]) -> dict[str, Any]:
    """Accuracy on the test half: by style, raw and with look-alikes joined; the worst confusions."""
    _, cells = halves(cells)
    index = judge.group_index.tolist()
    truth = torch.tensor([judge.subjects.index(s) for s, _ in cells], device=judge.device)
    group = torch.tensor([index[int(t)] for t in truth], device=judge.device)
    style = torch.tensor([judge.styles.index(s) for _, s in cells], device=judge.device)
    seen = cell_pictures(pictures, cells)
    shares = torch.cat([judge.subject_probabilities(part) for part in seen.split(128)])
    joint = torch.cat([judge.group_probabilities(part) for part in seen.split(128)])
    styles = torch.cat([judge.style_probabilities(part) for part in seen.split(128)]).argmax(1)
    raw = shares.argmax(1) == truth
    grouped = joint.argmax(1) == group
    table = {}
    for name in judge.styles:
        mask = style == judge.styles.index(name)
        table[name] = {
            "cells": int(mask.sum()),
            "top1": float(grouped[mask].float().mean()),
            "top1_ungrouped": float(raw[mask].float().mean()),
            "style": float((styles == style)[mask].float().mean()),
        }
    wrong = Counter(
        f"{cells[i][0]} ({cells[i][1]}) -> {judge.groups[int(joint[i].argmax())]}"
        for i in torch.nonzero(~grouped)[:, 0].tolist()
    )
    return {
        "top1": float(grouped.float().mean()),
        "top1_ungrouped": float(raw.float().mean()),
        "style": float((styles == style).float().mean()),
        "color": color_accuracy(judge, pictures, cells),
        "calibration_error": calibration_error(joint, group),
        "by_style": table,
        "wrong": sorted(wrong),
    }


def color_accuracy(judge: Judge, pictures: Pictures, cells: list[Cell]) -> float:
    """Share of backgrounds named right, over every color, on every ninth cell that takes one."""
    some = [cell for cell in cells if cell[1] not in OWN_PAPER][::9]
    right = []
    for color in range(len(judge.colors)):
        found = judge.color_probabilities(cell_pictures(pictures, some, color)).argmax(1)
        right.append((found == color).float())
    return float(torch.cat(right).mean())


def calibration_error(shares: Tensor, truth: Tensor, bins: int = 10) -> float:
    """Expected calibration error of the top answer, over equal-width confidence bins."""
    confidence, answer = shares.max(1)
    right = (answer == truth).float()
    total = 0.0
    for low in range(bins):
        mask = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if mask.any():
            total += float(mask.float().mean() * (confidence[mask].mean() - right[mask].mean()).abs())
    return total
