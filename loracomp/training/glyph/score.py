"""Figures of any glyph-like model by the judge: what ``benchmarks/results/glyph2.json`` holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loracomp.training.glyph.evaluate import Setting, figures, generate, requests
from loracomp.training.glyph.export import DEFAULTS
from loracomp.training.glyph.judge import load_judge
from loracomp.training.glyph.store import load


def score(data: Path, model: Path, judge: Path, subjects: int, device: str) -> dict[str, Any]:
    """Generate ``subjects`` training subjects in the four base styles and judge them.

    The model's own defaults are used, or 25 steps with guidance 3 where it has none.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    path = model / DEFAULTS
    setting = Setting(**json.loads(path.read_text())) if path.exists() else Setting()
    pipe = StableDiffusionPipeline.from_pretrained(str(model), safety_checker=None, dtype=torch.float32).to(
        device
    )
    wanted = requests(load(data), subjects)
    images = generate(pipe, [w.text for w in wanted], setting, batch=200 if device != "cpu" else 20)
    found = figures(load_judge(judge, device), images, wanted)
    return {"setting": asdict(setting), "pictures": len(wanted)} | found
