"""A map of a corpus: its adapters as pictures, near each other where the encoder finds them alike.

The layout is t-SNE (van der Maaten and Hinton 2008) of the cosines, computed exactly: a corpus is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STEPS = 600
_EARLY = 150
_EXAGGERATION = 8.0


def layout(vectors: Tensor, perplexity: float = 15.0, seed: int = 0) -> Tensor:
    """Places of unit vectors in the plane, centered, shape (n, 2), float64.

    Args:
        vectors: Shape (n, d).
        perplexity: Neighbours that count, less than n / 3.
        seed: Seed of the start.
    """
    count = len(vectors)
    wide = vectors.double()
    near = _affinities((2 - 2 * wide @ wide.T).clamp_min(0), min(perplexity, (count - 1) / 3))
    source = torch.Generator().manual_seed(seed)
    places = torch.randn(count, 2, generator=source, dtype=torch.float64) * 1e-4
    speed, gains = torch.zeros_like(places), torch.ones_like(places)
    for step in range(_STEPS):
        lift = _EXAGGERATION if step < _EARLY else 1.0
        close = 1 / (1 + torch.cdist(places, places).square())
        close.fill_diagonal_(0)
        pull = (lift * near - close / close.sum()) * close
        slope = 4 * (pull.sum(1, keepdim=True) * places - pull @ places)
        gains = torch.where(slope.sign() == speed.sign(), gains * 0.8, gains + 0.2).clamp_min(0.01)
        speed = (0.5 if step < _EARLY else 0.8) * speed - max(count / _EXAGGERATION / 4, 50) * gains * slope
        places = places + speed
        places = places - places.mean(0)
    return places


def _affinities(distances: Tensor, perplexity: float) -> Tensor:
    """Symmetric shares of neighbours, each row's width found by bisection so that it has the perplexity."""
    count = len(distances)
    hidden = distances.masked_fill(torch.eye(count, dtype=torch.bool), float("inf"))
    low, high = torch.full((count, 1), 1e-6).double(), torch.full((count, 1), 1e6).double()
    shares = torch.zeros_like(distances)
    for _ in range(60):
        width = (low * high).sqrt()
        shares = (-(hidden - hidden.amin(1, keepdim=True)) * width).softmax(1)
        entropy = -(shares * shares.clamp_min(1e-300).log()).sum(1, keepdim=True)
        wide = entropy > torch.tensor(perplexity).log()
        low, high = torch.where(wide, width, low), torch.where(wide, high, width)
    return (shares + shares.T) / (2 * count)


def draw_map(places: Tensor, pictures: Sequence[Path | None], side: int = 1600, thumbnail: int = 40) -> Any:
    """The map as a PIL image: thumbnails at their places, moved to free cells of a grid.

    Args:
        places: Shape (n, 2).
        pictures: A file for each; a gray square where there is none.
        side: Width and height in pixels.
        thumbnail: Width and height of a thumbnail.
    """
    from PIL import Image

    cells = side // thumbnail
    low, high = places.amin(0), places.amax(0)
    wanted = ((places - low) / (high - low).clamp_min(1e-9) * (cells - 1)).round().long()
    canvas, taken = Image.new("RGB", (side, side), "white"), set[tuple[int, int]]()
    for (x, y), file in zip(wanted.tolist(), pictures, strict=True):
        cell = _free(x, y, taken, cells)
        if cell is None:
            continue
        taken.add(cell)
        shown = Image.new("RGB", (thumbnail - 2, thumbnail - 2), "gray")
        if file is not None:
            with Image.open(file) as image:
                shown = image.convert("RGB").resize((thumbnail - 2, thumbnail - 2))
        canvas.paste(shown, (cell[0] * thumbnail + 1, cell[1] * thumbnail + 1))
    return canvas


def _free(x: int, y: int, taken: set[tuple[int, int]], cells: int) -> tuple[int, int] | None:
    """The nearest free cell, by rings; None where the grid is full nearby."""
    for ring in range(6):
        around = [
            (x + dx, y + dy)
            for dx in range(-ring, ring + 1)
            for dy in range(-ring, ring + 1)
            if max(abs(dx), abs(dy)) == ring and 0 <= x + dx < cells and 0 <= y + dy < cells
        ]
        found = [cell for cell in around if cell not in taken]
        if found:
            return min(found, key=lambda cell: (cell[0] - x) ** 2 + (cell[1] - y) ** 2)
    return None
