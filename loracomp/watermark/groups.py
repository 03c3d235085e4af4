"""Sets of unmarked images as they would be handed in: from one source, each image in one set."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped(clusters: Tensor, size: int, seed: int = 0) -> Tensor:
    """Disjoint sets of images, from the same cluster wherever it holds enough.

    Images of one source are alike, and sets that are handed in come from one source: mixed sets would make
    the null look better than it is.

    Args:
        clusters: Source of each image, (n,) integers.
        size: Images in a set.
        seed: Decides who goes with whom.

    Returns:
        (sets, size) indices; what is left of all clusters forms mixed sets.
    """
    source = torch.Generator().manual_seed(seed)
    whole: list[Tensor] = []
    rest: list[Tensor] = []
    for label in clusters.unique():
        index = (clusters == label).nonzero()[:, 0]
        index = index[torch.randperm(len(index), generator=source)]
        cut = len(index) // size * size
        whole.append(index[:cut].reshape(-1, size))
        rest.append(index[cut:])
    left = torch.cat(rest)
    left = left[torch.randperm(len(left), generator=source)]
    whole.append(left[: len(left) // size * size].reshape(-1, size))
    return torch.cat(whole)
