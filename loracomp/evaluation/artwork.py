"""The artists' own pictures of subjects and styles that the embedded base never saw: the ground truth.

The folder holds ``names.json`` and one picture per artist's style, tiles of 128 pixels with
transparency, eight in a row. They serve evaluation only; nothing may be trained on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.errors import ResourceError

if TYPE_CHECKING:
    from loracomp.evaluation.cells import Cell

Filter = Callable[[Tensor, Tensor], Tensor]
"""Straight-alpha pictures (B, 4, S, S) and backgrounds (B, 3) to pictures (B, 3, S, S), in [0, 1]."""
SHIPPED = Path(__file__).parents[1] / "assets" / "bench"
SIDE = 128
ACROSS = 8


@dataclass(frozen=True)
class Look:
    """A style or filter that the base never saw.

    Attributes:
        name: What records call it.
        phrase: What prompts call it.
        filter: Whether it is computed from a picture rather than drawn by an artist.
        paper: Whether it brings its own background.
        fine: Whether subjects of half the size can still be told apart in it.
    """

    name: str
    phrase: str
    filter: bool = False
    paper: bool = False
    fine: bool = True


@dataclass(frozen=True)
class Names:
    """What there is to compose.

    Attributes:
        subjects: Names in words, by slug.
        looks: Unseen styles and filters, by name.
        colours: RGB from 0 to 255, by name.
        plain: The style, seen by the base, whose pictures a filter alone is computed from.
        tiles: The slugs that each style draws, in the order of its tiles.
    """

    subjects: Mapping[str, str]
    looks: Mapping[str, Look]
    colours: Mapping[str, tuple[int, ...]]
    plain: str
    tiles: Mapping[str, tuple[str, ...]]

    def draws(self, slug: str, style: str) -> bool:
        """Whether the artist of ``style`` (the plain style for "") drew this subject."""
        return slug in self.tiles[style or self.plain]


def read_names(folder: Path = SHIPPED) -> Names:
    """The names of the artwork in a folder; raises :class:`ResourceError` where it is missing."""
    path = folder / "names.json"
    if not path.is_file():
        raise ResourceError(f"{path}: the benchmark's artwork is missing; reinstall loracomp")
    rows = json.loads(path.read_text(encoding="utf-8"))
    return Names(
        rows["subjects"],
        {name: Look(name, **row) for name, row in rows["looks"].items()},
        {name: tuple(color) for name, color in rows["colours"].items()},
        rows["plain"],
        {style: tuple(slugs) for style, slugs in rows["tiles"].items()},
    )


class Artwork:
    """Ground truth for cells.

    Args:
        names: What there is.
        pictures: Straight-alpha pictures (subjects, 4, S, S) in [0, 1] by style, as ``names.tiles``.
        filters: The filters by name.
    """

    def __init__(self, names: Names, pictures: Mapping[str, Tensor], filters: Mapping[str, Filter]) -> None:
        self.names = names
        self._pictures = pictures
        self._filters = filters

    def truth(self, cell: Cell) -> Tensor:
        """What the artist drew, (3, S, S) in [0, 1]: filtered, paired and on the cell's background."""
        parts = [self._tile(slug, cell.style or self.names.plain)[None] for slug in cell.subjects]
        rgba = parts[0] if len(parts) == 1 else side_by_side(parts[0], parts[1])
        color = self.names.colours[cell.background or "white"]
        back = torch.tensor([color], dtype=torch.float32) / 255
        painted = self._filters[cell.filter](rgba, back) if cell.filter else over(rgba, back)
        return painted[0].clamp(0, 1)

    def _tile(self, slug: str, style: str) -> Tensor:
        return self._pictures[style][self.names.tiles[style].index(slug)]


@cache
def _tiles(path: Path, count: int) -> Tensor:
    """The first ``count`` tiles of a picture, (count, 4, 128, 128) in [0, 1]."""
    from PIL import Image

    with Image.open(path) as image:
        values = torch.from_numpy(np.array(image.convert("RGBA"))).float() / 255
    rows, columns = values.shape[0] // SIDE, values.shape[1] // SIDE
    grid = values.view(rows, SIDE, columns, SIDE, 4).permute(0, 2, 4, 1, 3)
    return grid.reshape(-1, 4, SIDE, SIDE)[:count]


def open_artwork(filters: Mapping[str, Filter], folder: Path = SHIPPED) -> Artwork:
    """The shipped artwork.

    Args:
        filters: The filters by name; the caller has them, since they belong to the training recipe.
        folder: Where it lies.

    Raises:
        ResourceError: It is missing.
    """
    names = read_names(folder)
    pictures = {style: _tiles(folder / f"{style}.webp", len(slugs)) for style, slugs in names.tiles.items()}
    return Artwork(names, pictures, filters)


def over(rgba: Tensor, back: Tensor) -> Tensor:
    """Straight-alpha (B, 4, S, S) over colors (B, 3), in [0, 1]: (B, 3, S, S)."""
    alpha = rgba[:, 3:]
    return rgba[:, :3] * alpha + back[:, :, None, None] * (1 - alpha)


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Two straight-alpha pictures (B, 4, S, S) at half size, left and right of the middle."""
    both = torch.cat([_half(left), _half(right)], 3)
    quarter = both.shape[2] // 2
    return F.pad(both, (0, 0, quarter, quarter))


def _half(rgba: Tensor) -> Tensor:
    """Half the size; colors are averaged by their opacity."""
    alpha = F.avg_pool2d(rgba[:, 3:], 2)
    color = F.avg_pool2d(rgba[:, :3] * rgba[:, 3:], 2) / alpha.clamp_min(1e-4)
    return torch.cat([color.clamp(0, 1), alpha], 1)
