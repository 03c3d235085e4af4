"""What a codec trains on: pictures of nothing that GlyphBench measures with, or a folder of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from loracomp.errors import TrainingError
from loracomp.training.dataset import SUFFIXES
from loracomp.training.glyph.augment import palette, shuffle_channels, side_by_side
from loracomp.training.glyph.filters import over
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.splits import denoiser_may_see
from loracomp.training.glyph.subjects import Icon
from loracomp.training.pixels import load_pixels


class Material(Protocol):
    """A source of pictures."""

    def batch(self, count: int) -> Tensor:
        """Random pictures (count, 3, side, side) RGB in [0, 1], on the device."""


@dataclass(frozen=True)
class Icons:
    """glyph's training icons of the base's styles, without unseen subjects, without filters."""

    pictures: Pictures

    def allowed(self) -> Tensor:
        """Indices of the icons that a codec may see."""
        return self.pictures.where([codec_may_see(icon) for icon in self.pictures.icons])

    def batch(self, count: int) -> Tensor:
        """See :class:`Material`: random variants and backgrounds, a quarter of them white, some pairs."""
        allowed = self.allowed()
        device = allowed.device
        rgba = self.pictures.draw(allowed[torch.randint(len(allowed), (count,), device=device)])
        pairs = count // 8
        if pairs:
            rgba[:pairs] = side_by_side(rgba[:pairs], rgba[:pairs].roll(1, 0))
        flip = torch.rand(count, 1, 1, 1, device=device) < 0.5
        rgba = torch.where(flip, rgba.flip(3), rgba)
        colors = palette(device)
        back = colors[torch.randint(len(colors), (count,), device=device)]
        back = (back + 0.05 * torch.randn(count, 3, device=device)).clamp(0, 1)
        white = torch.rand(count, 1, device=device) < 0.25
        return shuffle_channels(over(rgba, torch.where(white, torch.ones_like(back), back)), 0.15)


@dataclass(frozen=True)
class Folder:
    """All pictures of a folder, for any base."""

    pixels: Tensor

    @classmethod
    def read(cls, folder: Path, side: int, device: str) -> Folder:
        """Reads them; raises :class:`TrainingError` for fewer than eight."""
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
        if len(files) < 8:
            raise TrainingError(
                f"{folder}: {len(files)} pictures; a codec needs 8 at least, better thousands"
            )
        return cls(torch.stack([(load_pixels(file, side) + 1) / 2 for file in files]).to(device))

    def batch(self, count: int) -> Tensor:
        """See :class:`Material`: half of them mirrored."""
        chosen = self.pixels[torch.randint(len(self.pixels), (count,), device=self.pixels.device)]
        flip = torch.rand(count, 1, 1, 1, device=chosen.device) < 0.5
        return torch.where(flip, chosen.flip(3), chosen)


def codec_may_see(icon: Icon) -> bool:
    """True for the base's styles without the 64 unseen subjects: nothing that GlyphBench measures with."""
    return denoiser_may_see(icon)


def write_manifest(icons: Iterable[Icon], path: Path) -> None:
    """Writes what the codec trains on: style → sorted subjects, under ``codec``."""
    seen: dict[str, list[str]] = {}
    for icon in icons:
        if codec_may_see(icon):
            seen.setdefault(icon.style, []).append(icon.subject)
    rows = {style: sorted(subjects) for style, subjects in sorted(seen.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"codec": rows}, indent=None) + "\n", encoding="utf-8")
