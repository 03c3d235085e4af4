"""All rendered icons as one array on the device, with what each of them shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loracomp.training.glyph import store
from loracomp.training.glyph.augment import as_float
from loracomp.training.glyph.clock import wait_for
from loracomp.training.glyph.render import render_all
from loracomp.training.glyph.subjects import Icon, Subject

NAME = "pictures.npy"


@dataclass(frozen=True)
class Pictures:
    """``pixels`` is (icons, variants, 128, 128, 4) bytes; variant 0 is the standard placement."""

    pixels: Tensor
    icons: list[Icon]
    subjects: dict[str, Subject]

    def draw(self, icons: Tensor, source: torch.Generator | None = None) -> Tensor:
        """A random variant of each given icon, (B, 4, 128, 128) in [0, 1]."""
        variants = self.pixels.shape[1]
        which = torch.randint(variants, (len(icons),), generator=source, device=icons.device)
        return as_float(self.pixels[icons, which])

    def standard(self, icons: Tensor) -> Tensor:
        """The standard variant of each given icon, (B, 4, 128, 128) in [0, 1]."""
        return as_float(self.pixels[icons, 0])

    def where(self, keep: list[bool]) -> Tensor:
        """The indices of the icons marked True, on the pixels' device."""
        index = [i for i, k in enumerate(keep) if k]
        return torch.tensor(index, dtype=torch.long, device=self.pixels.device)


def render_store(data: Path, work: Path, variants: int, workers: int) -> None:
    """Render every icon of the store into ``work/pictures.npy``; does nothing when it is there."""
    target = work / NAME
    if target.exists():
        return
    icons = store.load(data).icons
    pixels = render_all([icon.svg for icon in icons], variants, seed=1, workers=workers)
    work.mkdir(parents=True, exist_ok=True)
    part = work / "part.npy"
    np.save(part, pixels)
    part.rename(target)


def load_pictures(data: Path, work: Path, device: str) -> Pictures:
    """Wait for the rendered icons and put them on the device."""
    loaded = store.load(data)
    path = wait_for(work / NAME, minutes=10)
    pixels = torch.from_numpy(np.load(path)).to(device)
    return Pictures(pixels, loaded.icons, loaded.subjects)
