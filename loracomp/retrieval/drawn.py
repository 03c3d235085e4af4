"""What an adapter draws without being asked for anything: pictures that its weights alone decide.

Names and triggers can be missing or nonsense; a LoRA shows its style, its filter or its subject all the same
when it is drawn with, whatever the words. A few small pictures of fixed words and fixed noise, the same for
all adapters, are therefore features like the others, and the index's thumbnails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.fusion import Program
from loracomp.pipeline import attach, detach
from loracomp.retrieval.towers import PICTURE

WORDS = (
    "",
    "a fovil emoji",
    "a kruzbat emoji",
    "a zelmim emoji",
    "a house emoji",
    "a apple emoji",
    "a rocket emoji",
    "a cat emoji",
)
"""One picture each: nothing, words that nobody knows, and things that every base knows."""
SEED = 7_000


def draw_probes(
    pipe: Any,
    adapters: Sequence[Adapter],
    *,
    accelerator: Adapter | None = None,
    batch: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> Tensor:
    """Pictures of each adapter alone, shape (adapters, :data:`WORDS`, 3, 64, 64), uint8.

    Several adapters are drawn with at once, each picture with its own
    (per-sample mixtures of :func:`loracomp.pipeline.attach`).

    Args:
        pipe: The adapters' base.
        adapters: The adapters, at strength 1.
        accelerator: An adapter of few steps that is there in all pictures.
        batch: Pictures at once, about.
        progress: Told (adapters done, of).
        **settings: Arguments of the pipeline's call: steps, guidance.
    """
    found = []
    for group in _groups(adapters, max(1, batch // len(WORDS))):
        found.append(_drawn(pipe, group, accelerator, settings))
        progress(sum(map(len, found)), len(adapters))
    return torch.cat(found) if found else torch.zeros(0, len(WORDS), 3, PICTURE, PICTURE, dtype=torch.uint8)


def _groups(adapters: Sequence[Adapter], size: int) -> Iterator[Sequence[Adapter]]:
    for start in range(0, len(adapters), size):
        yield adapters[start : start + size]


@torch.inference_mode()
def _drawn(pipe: Any, group: Sequence[Adapter], fast: Adapter | None, settings: dict[str, Any]) -> Tensor:
    words, count = len(WORDS), len(group)
    alone = [tuple(float(i == j) for j in range(count)) for i in range(count) for _ in range(words)]
    programs = [Program("merge", (*row, 1.0) if fast else row) for row in alone]
    sources = [torch.Generator().manual_seed(SEED + k) for _ in range(count) for k in range(words)]
    pipe.set_progress_bar_config(disable=True)
    attach(pipe, [*group, fast] if fast else group, programs)
    try:
        images = pipe(list(WORDS) * count, generator=sources, **settings).images
    finally:
        detach(pipe)
    small = [_small(image) for image in images]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).reshape(count, words, 3, PICTURE, PICTURE)


def _small(image: Any) -> Any:
    size = (PICTURE, PICTURE)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


@torch.inference_mode()
def base_drawings(pipe: Any, *, accelerator: Adapter | None = None, **settings: Any) -> Tensor:
    """The same pictures of the base alone, at their full size: shape (:data:`WORDS`, 3, H, W), uint8."""
    sources = [torch.Generator().manual_seed(SEED + k) for k in range(len(WORDS))]
    if accelerator:
        attach(pipe, [accelerator])
    try:
        images = pipe(list(WORDS), generator=sources, **settings).images
    finally:
        if accelerator:
            detach(pipe)
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).permute(
        0, 3, 1, 2
    )
