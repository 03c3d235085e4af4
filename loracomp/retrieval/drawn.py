"""What an adapter draws without being asked for anything: pictures that its weights alone decide.

Names and triggers can be missing or nonsense; a LoRA shows its style, its filter or its subject all the same
when it is drawn with, whatever the words. A few small pictures of fixed words and fixed noise, the same for
all adapters, are therefore features like the others, and the index's thumbnails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from loracomp.adapter import Adapter
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


class Artist(Protocol):
    """Draws with one adapter at a time; :class:`loracomp.alone.Alone` does."""

    @property
    def base(self) -> str:
        """Base whose adapters it draws with."""

    @property
    def batch(self) -> int:
        """Images that it draws at once."""

    def __call__(
        self, adapters: Sequence[Adapter], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Any]:
        """PIL images, adapter by adapter and in the order of the prompts, each with its prompt's seed.

        Raises:
            BaseMismatchError: An adapter does not fit the base.
            FloatingPointError: An image has values that are not finite.
        """

    def plain(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        """PIL images of the base without any adapter."""


def draw_probes(artist: Artist, adapters: Sequence[Adapter]) -> Tensor:
    """Pictures of each adapter alone at strength 1, shape (adapters, :data:`WORDS`, 3, 64, 64), uint8.

    Raises:
        BaseMismatchError: An adapter does not fit the base.
        FloatingPointError: A picture has values that are not finite.
    """
    if not adapters:
        return torch.zeros(0, len(WORDS), 3, PICTURE, PICTURE, dtype=torch.uint8)
    images = artist(adapters, WORDS, range(SEED, SEED + len(WORDS)))
    small = torch.from_numpy(np.stack([_small(image) for image in images]))
    return small.permute(0, 3, 1, 2).reshape(len(adapters), len(WORDS), 3, PICTURE, PICTURE).contiguous()


def base_drawings(artist: Artist) -> Tensor:
    """The same pictures of the base alone, at their full size: shape (:data:`WORDS`, 3, H, W), uint8."""
    images = artist.plain(WORDS, range(SEED, SEED + len(WORDS)))
    levels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(levels).permute(0, 3, 1, 2)


def strip(drawn: Tensor) -> Any:
    """The pictures (n, 3, height, width) of an adapter side by side as one PIL image."""
    from PIL import Image

    return Image.fromarray(drawn.permute(2, 0, 3, 1).flatten(1, 2).numpy())


def _small(image: Any) -> Any:
    from PIL import Image

    return np.asarray(image.convert("RGB").resize((PICTURE, PICTURE), Image.Resampling.BICUBIC))
