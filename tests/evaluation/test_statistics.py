"""Laws of the bootstrap intervals: they cover the truth as often as they say, and ignore what they must."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loracomp.evaluation.statistics import cluster_draws, interval, paired_difference

SEEDS = st.integers(0, 2**31 - 1)


def sample(seed: int, clusters: int = 24, each: int = 4, within: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Values with mean 0: a part shared by the cluster and one of their own."""
    source = torch.Generator().manual_seed(seed)
    shared = torch.randn(clusters, 1, generator=source, dtype=torch.float64)
    own = torch.randn(clusters, each, generator=source, dtype=torch.float64) * within
    labels = torch.arange(clusters)[:, None].expand(clusters, each)
    return (shared + own).flatten(), labels.flatten()


def test_intervals_cover_the_truth_and_ignoring_clusters_does_not() -> None:
    runs, hits, naive = 400, 0, 0
    for seed in range(runs):
        values, labels = sample(seed)
        found = interval(values, labels, draws=400, seed=seed)
        hits += found.low <= 0 <= found.high
        single = interval(values, torch.arange(len(values)), draws=400, seed=seed)
        naive += single.low <= 0 <= single.high
    assert 0.91 <= hits / runs <= 0.985
    assert naive / runs < 0.85


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(-3, 3), st.floats(0.1, 5))
def test_intervals_move_and_stretch_with_the_values(seed: int, shift: float, scale: float) -> None:
    values, labels = sample(seed, clusters=6)
    plain, moved = interval(values, labels, draws=200), interval(values * scale + shift, labels, draws=200)
    for name in ("mean", "low", "high"):
        expected = getattr(plain, name) * scale + shift
        assert math.isclose(getattr(moved, name), expected, rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_order_within_clusters_and_their_numbers_do_not_matter(seed: int) -> None:
    values, labels = sample(seed, clusters=5, each=3)
    order = torch.arange(len(values)).view(5, 3).flip(1).flatten()
    first, other = interval(values, labels), interval(values[order], labels[order] * 7 + 100)
    assert math.isclose(first.low, other.low, abs_tol=1e-12)
    assert math.isclose(first.high, other.high, abs_tol=1e-12)


def test_repeating_every_value_changes_nothing_but_the_count() -> None:
    values, labels = sample(1, clusters=8)
    once, twice = interval(values, labels), interval(values.repeat(2), labels.repeat(2))
    assert math.isclose(once.low, twice.low, abs_tol=1e-12)
    assert (once.count * 2, once.clusters) == (twice.count, twice.clusters)


def test_pairing_removes_what_both_share() -> None:
    values, labels = sample(3, within=0.2)
    gain = paired_difference(values + 0.05 + 1e-3 * torch.sin(values), values, labels)
    assert gain.excludes_zero
    assert abs(gain.mean - 0.05) < 0.01
    assert not interval(values + 0.05, labels).excludes_zero
    same = paired_difference(values, values, labels)
    assert (same.low, same.mean, same.high) == (0, 0, 0)


def test_constant_values_have_no_width_and_one_cluster_has_no_ends() -> None:
    flat = interval(torch.full((12,), 0.25), torch.arange(12) // 3)
    assert (flat.low, flat.mean, flat.high) == (0.25, 0.25, 0.25)
    single = interval(torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.long))
    assert single.mean == 0.5
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    assert not single.excludes_zero


def test_ends_stay_within_the_values_and_few_clusters_decide_nothing() -> None:
    shares = interval(torch.tensor([0.0, 1.0, 1.0]), torch.arange(3))
    assert 0 <= shares.low < shares.mean < shares.high <= 1
    gains = torch.tensor([0.5, 0.6, 0.7, 0.6, 0.5, 0.6])
    assert interval(gains, torch.arange(6)).excludes_zero
    assert not interval(gains[:5], torch.arange(5)).excludes_zero


def test_missing_values_are_left_out() -> None:
    values, labels = sample(5, clusters=6)
    holes = torch.cat([values, torch.full((6,), math.nan, dtype=torch.float64)])
    assert interval(holes, torch.cat([labels, torch.arange(6)])) == interval(values, labels)
    assert interval(torch.tensor([math.nan]), torch.zeros(1)).count == 0


def test_draws_are_seeded() -> None:
    values, labels = sample(9)
    assert torch.equal(cluster_draws(values, labels, 50, 3), cluster_draws(values, labels, 50, 3))
    assert not torch.equal(cluster_draws(values, labels, 50, 3), cluster_draws(values, labels, 50, 4))
