"""What a gate did in a run: by layer and step, and where in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from loracomp.fusion.gated.live import Gating
from loracomp.fusion.regions import Grid, is_spatial

SIDE = 64
"""Most rows and columns of a map."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Means of the factors, each output weighed by its energy: the constant that fits the gate best.

    min over c of ‖factor ⊙ o - c o‖² has c = ⟨factor ⊙ o, o⟩ / ‖o‖².

    Attributes:
        levels: Noise level of each step.
        layers: By module path, shape (steps, adapters); NaN where an adapter adds nothing.
        maps: Over the image, shape (adapters, height, width); NaN where nothing is added.
        spread: Share of the energy of the gated outputs that these constants leave unexplained, in [0, 1].
    """

    levels: tuple[float, ...]
    layers: dict[str, Tensor]
    maps: Tensor
    spread: float


class Watch:
    """Collects what a gate does until :meth:`stop`.

    Args:
        gating: The gate at work.
        adapters: Number of adapters.
        grids: Layouts of image tokens.
    """

    def __init__(self, gating: Gating, adapters: int, grids: Sequence[Grid]) -> None:
        self.gating, self.adapters = gating, adapters
        self.grids = {grid.tokens: grid for grid in grids}
        side = max(grids, key=lambda grid: grid.height * grid.width)
        self.size = (min(side.height, SIDE), min(side.width, SIDE))
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._maps = torch.zeros(2, adapters, *self.size)
        for path, layer in gating.layers.items():
            layer.watch = partial(self._note, path)

    def stop(self) -> Seen:
        """Takes the watch off; what was seen."""
        for layer in self.gating.layers.values():
            layer.watch = None
        steps = 1 + max((step for _, step in self._sums), default=-1)
        layers: dict[str, Tensor] = {}
        left = whole = 0.0
        for path in dict.fromkeys(path for path, _ in self._sums):
            rows = [self._sums.get((path, step), torch.zeros(3, self.adapters)) for step in range(steps)]
            inner, energy, square = torch.stack(rows, dim=1)
            layers[path] = torch.where(energy > 0, inner / energy.clamp_min(1e-30), torch.nan)
            left += float((square - inner.square() / energy.clamp_min(1e-30)).clamp_min(0).sum())
            whole += float(square.sum())
        maps = torch.where(self._maps[1] > 0, self._maps[0] / self._maps[1].clamp_min(1e-30), torch.nan)
        levels = tuple(self.gating.levels[step] for step in range(steps))
        return Seen(levels, layers, maps, left / whole if whole else 0.0)

    @torch.no_grad()
    def _note(self, path: str, i: int, own: Tensor, held: Tensor) -> None:
        """Adds what one layer does to one adapter's output (rows, tokens, d)."""
        if i >= self.adapters:
            return
        power = own.float().square()
        weighed = power * held.float()
        square = (weighed * held.float()).sum().cpu()
        place = torch.stack([weighed.sum().cpu(), power.sum().cpu(), square])
        key = (path, self.gating.step)
        sums = self._sums.setdefault(key, torch.zeros(3, self.adapters))
        sums[:, i] += place
        grid = self.grids.get(own.shape[-2]) if is_spatial(path) else None
        if grid is not None:
            planes = torch.stack([weighed.sum(-1), power.sum(-1)]).mean(1)
            inside = planes[:, grid.before : own.shape[-2] - grid.after]
            # Every layer counts alike: its energies are shares of its own.
            share = inside / power.sum().clamp_min(1e-30)
            shown = F.interpolate(share.unflatten(1, (grid.height, grid.width))[None], self.size)[0]
            self._maps[:, i] += shown.cpu()
