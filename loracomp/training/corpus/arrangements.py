"""Two subjects made into one: (B, 4, 128, 128) straight alpha in [0, 1] in and out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Arrangement = Callable[[Tensor, Tensor], Tensor]


def sides(one: Tensor, other: Tensor) -> Tensor:
    """The left half of one, the right half of the other."""
    return torch.cat([fitted(one, 116)[..., :64], fitted(other, 116)[..., 64:]], 3)


def storeys(one: Tensor, other: Tensor) -> Tensor:
    """The upper half of one, the lower half of the other."""
    return torch.cat([fitted(one, 116)[..., :64, :], fitted(other, 116)[..., 64:, :]], 2)


def nested(one: Tensor, other: Tensor) -> Tensor:
    """One small with a light rim in the middle of the other."""
    small = fitted(one, 56)
    rim = F.max_pool2d(small[:, 3:], 7, stride=1, padding=3)
    return laid(small, laid(torch.cat([torch.ones_like(small[:, :3]), rim], 1), fitted(other, 118)))


def ringed(one: Tensor, other: Tensor) -> Tensor:
    """One in the middle, the other small in all corners."""
    corner = fitted(other, 36)[..., 46:82, 46:82]
    row = torch.cat([F.pad(corner, (4, 24)), F.pad(corner, (24, 4))], 3)
    return laid(fitted(one, 76), torch.cat([F.pad(row, (0, 0, 4, 24)), F.pad(row, (0, 0, 24, 4))], 2))


def stacked(one: Tensor, other: Tensor) -> Tensor:
    """One above the other, both at 60 pixels' height or width."""
    return torch.cat([fitted(part, 60)[..., 32:96, :] for part in (one, other)], 2)


ARRANGE: dict[str, Arrangement] = {
    "sides": sides,
    "storeys": storeys,
    "nested": nested,
    "ringed": ringed,
    "stacked": stacked,
}


def laid(top: Tensor, below: Tensor) -> Tensor:
    """One straight-alpha picture over another."""
    alpha = top[:, 3:] + below[:, 3:] * (1 - top[:, 3:])
    color = top[:, :3] * top[:, 3:] + below[:, :3] * below[:, 3:] * (1 - top[:, 3:])
    return torch.cat([(color / alpha.clamp_min(1e-4)).clamp(0, 1), alpha], 1)


def fitted(rgba: Tensor, side: int) -> Tensor:
    """Each drawing cut out and scaled so that its longer side is ``side`` pixels, in the middle."""
    made = []
    for picture in rgba[:, None]:
        inside = picture[0, 3] > 0.05
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        if len(rows) == 0:
            made.append(torch.zeros_like(picture))
            continue
        cut = picture[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        scale = side / max(cut.shape[-2:])
        height, width = (max(1, round(scale * length)) for length in cut.shape[-2:])
        small = _resized(cut, height, width)
        top, left = (128 - height) // 2, (128 - width) // 2
        made.append(F.pad(small, (left, 128 - width - left, top, 128 - height - top)))
    return torch.cat(made)


def _resized(rgba: Tensor, height: int, width: int) -> Tensor:
    """Colors weighted by opacity, so that hidden ones do not bleed in."""
    both = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    small = F.interpolate(both, size=(height, width), mode="bilinear", antialias=True)
    return torch.cat([(small[:, :3] / small[:, 3:].clamp_min(1e-4)).clamp(0, 1), small[:, 3:]], 1)
