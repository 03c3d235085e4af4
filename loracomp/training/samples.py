"""The picture beside a trained file: each prompt without the adapter, then with it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from loracomp.errors import UsageError

CELL = 256
GAP = 4
PROMPTS = 4


def spread_prompts(captions: Sequence[str], count: int = PROMPTS) -> tuple[str, ...]:
    """At most ``count`` distinct captions, evenly spaced through the data."""
    distinct = list(dict.fromkeys(captions))
    picks = sorted({round(i * (len(distinct) - 1) / max(1, count - 1)) for i in range(count)})
    return tuple(distinct[i] for i in picks)


def draw_samples(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], *, autocast: bool, **settings: Any
) -> list[list[Any]]:
    """Pictures of every prompt with every seed: one list of PIL images per prompt.

    ``settings`` are arguments of the pipeline's call; those that it does not have are left out.
    """
    known = inspect.signature(pipe.__call__).parameters
    settings = {key: value for key, value in settings.items() if key in known}
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    precision = torch.autocast(pipe.device.type, torch.bfloat16) if autocast else nullcontext()
    rows = []
    try:
        with torch.inference_mode(), precision:
            for prompt in prompts:
                sources = [torch.Generator().manual_seed(seed) for seed in seeds]
                rows.append(list(pipe([prompt] * len(seeds), generator=sources, **settings).images))
    finally:
        pipe.set_progress_bar_config(**({"disable": False} | before))
    return rows


def grid(rows: Sequence[Sequence[Any]], cell: int = CELL) -> Any:
    """Pictures in rows on white, each at most ``cell`` pixels wide, as one PIL image."""
    from PIL import Image

    side = min(cell, rows[0][0].width)
    width = max(len(row) for row in rows) * (side + GAP) - GAP
    sheet = Image.new("RGB", (width, len(rows) * (side + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (x * (side + GAP), y * (side + GAP)))
    return sheet


def write_picture(picture: Any, path: Path) -> Path:
    """Saves a picture; raises :class:`UsageError` where it cannot be written."""
    try:
        picture.save(path, optimize=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path
