"""The picture beside a trained file: each prompt without the adapter, then with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from loracomp.bases import Base
from loracomp.errors import UsageError
from loracomp.loading import defaults
from loracomp.training.config import TrainConfig

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


def write_sheet(
    pipe: Any,
    config: TrainConfig,
    row: Base,
    captions: Sequence[str],
    path: Path,
    *,
    alone: Callable[[], AbstractContextManager[Any]],
    autocast: bool,
) -> Path:
    """Rows of prompts: the base alone with the first seed, then the adapter with each seed.

    Args:
        pipe: The base with the adapter on it.
        config: The adapter's effective config.
        row: The base's row.
        captions: The training captions, where the config has no prompts.
        path: File to write.
        alone: Gives a context in which the base is alone.
        autocast: Whether to compute in bf16.
    """
    prompts = config.sample_prompts or spread_prompts(captions)
    seeds = [config.seed + index for index in range(config.sample_count)]
    side = config.resolution or row.resolution
    settings = {
        "height": side,
        "width": side,
        "num_inference_steps": config.sample_steps,
        "guidance_scale": config.sample_guidance,
        "guidance_rescale": defaults(config.base, row)["guidance_rescale"],
    }
    with alone():
        plain = draw_samples(pipe, prompts, seeds[:1], autocast=autocast, **settings)
    drawn = draw_samples(pipe, prompts, seeds, autocast=autocast, **settings)
    return write_picture(grid([[*a, *b] for a, b in zip(plain, drawn, strict=True)]), path)


def write_picture(picture: Any, path: Path) -> Path:
    """Saves a picture; raises :class:`UsageError` where it cannot be written."""
    try:
        picture.save(path, optimize=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path
