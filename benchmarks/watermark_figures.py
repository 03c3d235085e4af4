"""Figures and pictures of the watermark's benchmark: the judge's view, the table of targets, the curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TARGETS: tuple[tuple[str, str, str, float], ...] = (
    ("none", "", "accuracy", 0.95), ("none", "", "tpr5_1e6", 0.99), ("strength", "0.6", "accuracy", 0.88),
    ("1 other", "1", "accuracy", 0.90), ("3 other", "1", "accuracy", 0.80),
    ("rank", "0.25", "accuracy", 0.85), ("quantize", "1", "accuracy", 0.94), ("jpeg", "50", "accuracy", 0.85),
)  # fmt: skip


def figures(
    images: Path,
    style: str,
    method: str,
    seed: int,
    prompts: Sequence[str],
    drawn: Mapping[str, Tensor],
    device: str,
) -> dict[str, Any]:
    """The judge's accuracies of each set and its distances, on white and on colors; writes the residual."""
    from loracomp.evaluation.judge import open_judge

    judge = open_judge("glyph", device=device)
    table = judge.vocabulary
    slugs = [text.partition(" emoji")[0].removeprefix("a ").replace(" ", "-") for text in prompts]
    known = [slug if slug in table.head_of else None for slug in slugs]
    rows = torch.tensor([n for n, slug in enumerate(known) if slug])
    subjects = torch.tensor([table.subject(slug) for slug in known if slug])
    white = torch.tensor(["background" not in text for text in prompts])
    out: dict[str, Any] = {}
    for name, pictures in drawn.items():
        subject = judge.subjects(pictures[rows]).argmax(1).cpu() == subjects
        right = judge.styles(pictures).argmax(1).cpu() == table.style(style)
        out[name] = {
            "subject": float(subject.float().mean()),
            "style": float(right.float().mean()),
            "distance_white": _distance(judge, pictures, drawn["twin"], white),
            "distance_color": _distance(judge, pictures, drawn["twin"], ~white),
        }
    if method == "keyed" and seed == 0:
        _residual(drawn["marked"], drawn["twin"], images / f"watermark_{style}.webp")
    out["residual_psnr"] = float(-10 * torch.log10((drawn["marked"] - drawn["twin"]).square().mean()))
    return out


def _distance(judge: Any, pictures: Tensor, others: Tensor, chosen: Tensor) -> float:
    if not bool(chosen.any()):
        return math.nan
    return float(1 - judge.similarity(pictures[chosen], others[chosen]).mean())


def _residual(marked: Tensor, twin: Tensor, path: Path, count: int = 8) -> None:
    """Rows: unmarked, marked, the difference ten times around gray."""
    from loracomp.training.glyph.sheets import write_sheet

    shown = [twin[:count], marked[:count], (0.5 + 10 * (marked[:count] - twin[:count])).clamp(0, 1)]
    write_sheet(torch.cat(shown), None, path, columns=min(count, len(twin)))


def report(found: Mapping[str, Any], out: Path) -> None:
    """The table of targets, all that was measured, and the curves."""
    rows: list[dict[str, Any]] = []
    for method in ("keyed", "authenlora", "aqualora"):
        names = [n for n in found if n.startswith("attack-") and f"-{method}-" in n and n.endswith("-32")]
        runs = [found[name]["rows"] for name in names if found[name]]
        for attack, level, figure, target in TARGETS:
            here = [row for run in runs for row in run if (row["attack"], row["level"]) == (attack, level)]
            if here:
                about = {"method": method, "attack": attack, "level": level, "figure": figure}
                rows.append({**about, "target": target, **_mean([row[figure] for row in here])})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"targets": rows, "stages": found}, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        what, mean = f"{row['method']} {row['attack']} {row['level']}", float(row["mean"])
        held = "holds" if mean >= row["target"] else "MISSES"
        print(f"{what}: {mean:.3f} (target {row['target']}) {held}")
    curves = {
        name.removeprefix("attack-"): [(row["strength"], row["tpr5_0.001"]) for row in run["power"]]
        for name, run in found.items()
        if run and name.startswith("attack-") and name.endswith("-0-32")
    }
    if curves:
        plot(curves, "TPR of five pictures at 1e-3 by strength", out.with_name("watermark_power.png"))


def _mean(values: Sequence[float]) -> dict[str, float]:
    """Mean and the half width of its 95 % interval over runs (Student's t)."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return {"mean": mean, "half_width": math.nan, "runs": count}
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31}.get(count, 2.0)
    return {"mean": mean, "half_width": quantile * deviation / math.sqrt(count), "runs": count}


def plot(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, path: Path) -> None:
    """Lines in a unit square of y, x from 0 to the largest, with a legend."""
    from PIL import Image, ImageDraw

    width, height, left, foot = 640, 400, 48, 40
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    top = max(x for line in curves.values() for x, _ in line)
    colors = (
        "#1f77b4",
        "#d62728",
        "#2ca02c",
        "#9467bd",
        "#ff7f0e",
        "#17becf",
        "#8c564b",
        "#7f7f7f",
        "#bcbd22",
    )

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / top * (width - left - 180), 24 + (1 - y) * (height - 24 - foot)

    for step in range(6):
        y = place(0, step / 5)[1]
        pen.line([place(0, step / 5), place(top, step / 5)], fill="#dddddd")
        pen.text((8, y - 6), f"{step / 5:.1f}", fill="black")
        pen.text((place(top * step / 5, 0)[0] - 8, height - foot + 8), f"{top * step / 5:.1f}", fill="black")
    pen.text((left, 4), title, fill="black")
    for number, (name, line) in enumerate(curves.items()):
        color = colors[number % len(colors)]
        pen.line([place(x, min(1.0, y)) for x, y in line], fill=color, width=2)
        pen.text((width - 170, 30 + 16 * number), name, fill=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
