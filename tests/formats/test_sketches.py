"""Sketches of factored layers: those of dense matrices, in any type and range, alone or in company."""

from __future__ import annotations

import pytest
import torch

from loracomp.formats.sketches import probes, sketches
from loracomp.lowrank import LowRank

PATH = "unet.blocks.0.conv"


def layer(rank: int, dtype: torch.dtype, size: float) -> LowRank:
    """A random convolution update with factors of a size."""
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn((rank, 4, 3, 3), generator=generator) * size
    return LowRank(down.to(dtype), (torch.randn((9, rank, 1, 1), generator=generator) * size).to(dtype), 1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e-2, 1e2, 1e-30, 1e38])
def test_sketches_are_those_of_dense_updates(dtype: torch.dtype, size: float) -> None:
    if dtype is torch.float16 and not 1e-4 < size < 1e4:
        size = 1.0
    layers = [layer(rank, dtype, size) for rank in (3, 1, 2)]
    left, right = (values.double() for values in probes(PATH, 9, 36))
    for one, found in zip(layers, sketches(PATH, layers), strict=True):
        exact = ((left @ one.delta(torch.float64).flatten(1)) * right).sum(1)
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), exact, rtol=1e-4, atol=1e-5 * size * size
        )
        assert sketches(PATH, [one]) == [pytest.approx(found, rel=1e-5)]
