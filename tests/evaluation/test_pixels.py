"""Pixels: conversions lose nothing, alignment forgives what it should and no more, halves are found."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loracomp.evaluation.alignment import CEILING, aligned_psnr
from loracomp.evaluation.pixels import as_images, as_tensor, halves


def disc(x: float, y: float, radius: float, color: tuple[float, float, float], size: int = 64) -> Tensor:
    """A disc on white, (1, 3, size, size)."""
    grid = torch.arange(size) + 0.5
    inside = ((grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2) < radius**2
    picture = torch.ones(1, 3, size, size)
    picture[:, :, inside] = torch.tensor(color)[None, :, None]
    return picture


RED, BLUE = (0.8, 0.1, 0.1), (0.1, 0.2, 0.9)


def test_pictures_survive_the_way_there_and_back() -> None:
    bytes_ = torch.randint(256, (3, 3, 9, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_tensor(as_images(bytes_ / 255)) * 255, bytes_.float())


@settings(max_examples=20, deadline=None)
@given(st.integers(-8, 8), st.integers(-8, 8))
def test_shifts_within_reach_are_forgiven(right: int, down: int) -> None:
    truth, moved = disc(32, 32, 12, RED), disc(32 + right, 32 + down, 12, RED)
    assert float(aligned_psnr(moved, truth, reach=8)) > CEILING - 0.1


def test_shifts_beyond_reach_are_not() -> None:
    truth, moved = disc(32, 32, 12, RED), disc(46, 32, 12, RED)
    far, near = aligned_psnr(moved, truth, reach=4), aligned_psnr(disc(36, 32, 12, RED), truth, reach=4)
    assert float(far) < 15 < float(near)


def test_alignment_finds_the_size() -> None:
    truth = disc(32, 32, 12, RED)
    larger = disc(32, 32, 15, RED)
    assert float(aligned_psnr(larger, truth)) > float(aligned_psnr(larger, truth, scales=(1.0,))) + 3


def test_other_colors_and_shapes_score_lower() -> None:
    truth = disc(32, 32, 12, RED)
    scores = [
        aligned_psnr(p, truth) for p in (truth, disc(33, 30, 12, (0.7, 0.2, 0.1)), disc(32, 32, 12, BLUE))
    ]
    assert float(scores[0]) > float(scores[1]) > float(scores[2])


def test_each_picture_is_aligned_for_itself() -> None:
    pictures = torch.cat([disc(30, 32, 12, RED), disc(36, 30, 9, BLUE)])
    truths = torch.cat([disc(32, 32, 12, RED), disc(32, 32, 12, RED)])
    single = torch.cat([aligned_psnr(p[None], t[None]) for p, t in zip(pictures, truths, strict=True)])
    assert torch.allclose(aligned_psnr(pictures, truths), single, atol=1e-9)


def test_halves_are_cut_out_and_enlarged() -> None:
    both = disc(16, 36, 10, RED).minimum(disc(50, 30, 6, BLUE))
    left, right = halves(both)
    assert left.shape == right.shape == both.shape
    whole = [disc(32, 32, 28.8, color) for color in (RED, BLUE)]
    assert float(aligned_psnr(left, whole[0])) > 17 > float(aligned_psnr(left, whole[1]))
    assert float(aligned_psnr(right, whole[1])) > 17 > float(aligned_psnr(right, whole[0]))


def test_an_empty_half_is_background() -> None:
    left, right = halves(disc(16, 32, 8, RED))
    assert bool((right == 1).all())
    assert not bool((left == 1).all())
