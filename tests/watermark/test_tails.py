"""Tails against enumeration, published tables and simulation."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from markworlds import source

from loracomp.watermark import tails


def test_sphere_tail_is_the_share_of_random_directions() -> None:
    directions = torch.randn(200_000, 12, generator=source(0), dtype=torch.float64)
    cosines = directions[:, 0] / directions.norm(dim=1)
    for cosine in (-0.4, 0.0, 0.2, 0.5, 0.8):
        share = float((cosines >= cosine).double().mean())
        assert tails.sphere_tail(cosine, 12) == pytest.approx(share, rel=0.06, abs=1e-4)


@pytest.mark.parametrize("cosine", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_sphere_tail_in_three_dimensions_is_archimedes(cosine: float) -> None:
    """The projection of a sphere's points on an axis is uniform."""
    assert tails.sphere_tail(cosine, 3) == pytest.approx((1 - cosine) / 2, rel=1e-12, abs=1e-290)


def test_sphere_tail_falls_and_is_never_zero() -> None:
    values = [tails.sphere_tail(c / 50, 768) for c in range(-50, 51)]
    assert values == sorted(values, reverse=True)
    assert 0 < values[-1] < 1e-200
    assert tails.sphere_tail(0.1, 768) + tails.sphere_tail(-0.1, 768) == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.3, 1e-3, 1e-6])
def test_critical_cosine_inverts_the_tail(alpha: float) -> None:
    cosine = tails.critical_cosine(alpha, 500)
    assert tails.sphere_tail(cosine, 500) == pytest.approx(alpha, rel=1e-9)


def test_sign_tail_is_enumeration() -> None:
    weights = torch.rand(11, generator=source(1), dtype=torch.float64)
    sums = [
        sum(s * w for s, w in zip(signs, weights.tolist(), strict=True))
        for signs in product((1, -1), repeat=11)
    ]
    for score in (-1.0, 0.0, 1.3, float(weights.sum())):
        share = sum(total >= score - 1e-12 for total in sums) / len(sums)
        assert tails.sign_tail(weights, score) == pytest.approx(max(share, 1e-300), rel=1e-9)


def test_the_lattice_bounds_the_exact_tail_from_above_and_closely() -> None:
    weights = torch.rand(36, generator=source(2), dtype=torch.float64)
    for score in (0.0, 3.0, 8.0, 12.0):
        exact, bound = tails.sign_tail(weights, score), tails._lattice(weights.numpy(), score)
        assert exact <= bound * (1 + 1e-9)
        assert bound <= 1.3 * exact


def test_sign_tail_of_equal_weights_is_binomial() -> None:
    for bits, matches in ((32, 30), (48, 41), (64, 51)):
        assert tails.sign_tail(torch.ones(bits), 2 * matches - bits) == pytest.approx(
            tails.bit_tail(matches, bits), rel=1e-9
        )


@pytest.mark.parametrize(
    ("bits", "wanted"),
    [(16, (14, 15, 16, None)), (24, (19, 20, 22, 24)), (32, (24, 26, 27, 30)), (48, (33, 36, 38, 41)),
     (64, (42, 45, 48, 51)), (100, (63, 66, 69, 74))],
)  # fmt: skip
def test_thresholds_are_the_exact_ones(bits: int, wanted: tuple[int | None, ...]) -> None:
    """One less than each is above its level: the off-by-one of several public verifiers."""
    for alpha, threshold in zip((1e-2, 1e-3, 1e-4, 1e-6), wanted, strict=True):
        assert tails.bit_threshold(bits, alpha) == threshold
        if threshold is not None:
            assert tails.bit_tail(threshold, bits) <= alpha < tails.bit_tail(threshold - 1, bits)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(1000, 1000, 0.9963, 1.0), (95, 100, 0.887, 0.984), (0, 32_000, 0.0, 1.2e-4), (0, 299, 0.0, 0.01226)],
)
def test_share_intervals_are_clopper_and_pearsons(hits: int, trials: int, low: float, high: float) -> None:
    found = tails.share_interval(hits, trials)
    assert found[0] == pytest.approx(low, abs=5e-4)
    assert found[1] == pytest.approx(high, abs=5e-4)


def test_balanced_messages_are_most_messages() -> None:
    low, high = tails.balanced_weights(48)
    assert (low, high) == (20, 28)
    share = sum(bin(word).count("1") in range(4, 7) for word in range(1024)) / 1024
    assert tails.balanced_share(10) == pytest.approx(share)
