"""What the shipped accelerator keeps of the base: ``python -m benchmarks.accelerator``.

The judge looks at pictures of subjects that the base knows, in its four styles: drawn by the base at its
own settings, by the base in few steps without guidance, and by the base with the accelerator in as many.
Writes ``benchmarks/results/accelerator.json`` and ``docs/images/accelerator.webp``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loracomp.library import SHIPPED
from loracomp.loading import open_base
from loracomp.pipeline import attach, detach
from loracomp.training.glyph.captions import prompt
from loracomp.training.glyph.evaluate import Request, Setting, figures, generate
from loracomp.training.glyph.export import DEFAULTS
from loracomp.training.glyph.judge import Judge, load_judge
from loracomp.training.glyph.packages import ART_SETS, BASE_STYLES
from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.glyph.sheets import write_sheet
from loracomp.training.glyph.splits import committed

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "loracomp" / "assets"
FEW = (4, 6, 8)
SHOWN = 8


def requests(judge: Judge, subjects: int, seed: int = 6) -> list[Request]:
    """Random subjects that the denoiser saw in all base styles, in each of these styles."""
    seen = committed("manifest.json.xz")["denoiser"]
    pool = sorted(set.intersection(*(set(seen[style]) for style in BASE_STYLES)))
    names = dict(zip(judge.subjects, judge.config.subject_names, strict=True))
    phrases = {art.style: art.phrase for art in ART_SETS}
    rng = np.random.default_rng(seed)
    out = []
    for i in rng.choice(len(pool), subjects, replace=False):
        for style in BASE_STYLES:
            color = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))]
            text = prompt(names[pool[i]], phrases[style], color)
            out.append(Request(pool[i], style, color, text))
    return out


def ways(pipe: Any) -> list[tuple[str, Setting, bool]]:
    """Name, settings and whether the accelerator is on, for each row."""
    own = Setting(**json.loads((ASSETS / "glyph" / DEFAULTS).read_text()))
    rows = [("base, own settings", own, False)]
    for steps in FEW:
        few = Setting(steps, 1.0, 0.0)
        rows += [(f"base, {steps} steps", few, False), (f"accelerator, {steps} steps", few, True)]
    return rows


def main() -> None:
    """Draws, judges, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=25)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "accelerator.json")
    args = parser.parse_args()
    from loracomp.formats import load

    pipe = open_base("glyph", dtype="auto", device=args.device)
    judge = load_judge(ASSETS / "judge", str(pipe.device))
    wanted = requests(judge, args.subjects)
    fast = load(SHIPPED / "accelerator.safetensors")
    rows: list[dict[str, Any]] = []
    shown: list[Tensor] = []
    for name, setting, accelerated in ways(pipe):
        if accelerated:
            attach(pipe, [fast])
        made = generate(pipe, [w.text for w in wanted], setting, batch=20)
        detach(pipe)
        rows.append({"row": name, **vars(setting), **figures(judge, made, wanted)})
        shown.append(made[:: max(1, len(made) // SHOWN)][:SHOWN])
        print(
            f"{name}: " + ", ".join(f"{k} {rows[-1][k]:.3f}" for k in ("top1", "style", "color")), flush=True
        )
    report = {"pictures": len(wanted), "adapter": fast.digest[:16], "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_sheet(torch.cat(shown), None, ROOT / "docs" / "images" / "accelerator.webp", columns=SHOWN)


if __name__ == "__main__":
    main()
