"""LoRA-LEGO: gauge and sign do not matter, duplicates become one, strangers stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_merges import SHAPES, adapter, deltas, dense, family, weighted
from hypothesis import given, settings
from hypothesis import strategies as st

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion.offline import merge
from loracomp.fusion.offline.lego import Units, clustered
from loracomp.lowrank import LowRank

EXACT: dict[str, Any] = {"parameter_reweight": False, "output_reweight": False, "dtype": torch.float64}


def turned(one: Adapter, seed: int) -> Adapter:
    """(B M, M⁻¹ A) with a random invertible M, the same update."""
    generator = torch.Generator().manual_seed(seed)

    def change(layer: LowRank) -> LowRank:
        rank = layer.rank
        mix = torch.randn(rank, rank, generator=generator, dtype=torch.float64) / rank + torch.eye(rank) * 1.5
        down = torch.linalg.solve(mix, layer.down.flatten(1)).reshape(layer.down.shape)
        up = (layer.up.flatten(1) @ mix).reshape(layer.up.shape)
        return LowRank(down, up, layer.alpha)

    return one.map(change)


@given(st.integers(0, 2**20), st.sampled_from([None, 1, 3, 6]))
@settings(max_examples=25, deadline=None)
def test_the_gauge_of_the_factors_changes_nothing(seed: int, rank: int | None) -> None:
    weights, twins = [1.0, 0.5, 0.7], [turned(one, seed) for one in family()]
    plain = merge(family(), weights, "lego", rank=rank, dtype=torch.float64)
    other = merge(twins, weights, "lego", rank=rank, dtype=torch.float64)
    for path in SHAPES:
        torch.testing.assert_close(dense(other, path), dense(plain, path), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("path", SHAPES)
def test_unrelated_adapters_are_stacked_exactly(path: str) -> None:
    merged = merge(family(), [1.0, -0.5, 0.7], "lego", similarity=1.0, dtype=torch.float64)
    torch.testing.assert_close(dense(merged, path), weighted(deltas(family(), path), [1.0, -0.5, 0.7]))


def test_an_adapter_merged_with_itself_is_itself() -> None:
    one = family()[0]
    merged = merge([one, turned(one, 3), turned(one, 4)], None, "lego", **EXACT)
    for path in SHAPES:
        assert merged.layers[path].rank == 3
        torch.testing.assert_close(dense(merged, path), deltas([one], path)[0], atol=1e-8, rtol=1e-8)


def test_a_unit_and_its_negative_are_one_unit() -> None:
    # (a, b) and (-a, -b) are the same rank-one matrix, (a, -b) is its opposite.
    a, b = torch.eye(4, dtype=torch.float64)[:1], torch.eye(5, dtype=torch.float64)[:1]
    units = Units(torch.cat([a, -a, 2 * a]), torch.cat([b, -b, 2 * b]))
    owners, centroids = clustered(units, Units(a, b), 5)
    assert owners.tolist() == [0, 0, 0]
    torch.testing.assert_close(centroids.inputs, a * 4 / 3)
    torch.testing.assert_close(units.similarity(Units(a, -b)).flatten(), -torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_clusters_are_the_groups_that_are_there(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    draws = [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (9, 7)]
    centers = [torch.linalg.qr(draw).Q for draw in draws]

    def near(seed: int) -> LowRank:
        noise = torch.Generator().manual_seed(seed)
        down = centers[1] + 0.01 * torch.randn(7, rank, generator=noise, dtype=torch.float64)
        # Sizes differ, so that the singular directions are the columns.
        up = centers[0] * torch.arange(1.0, rank + 1)
        return LowRank(down.T.contiguous(), up)

    adapters = [Adapter({"unet.a": near(seed)}, "custom") for seed in range(3)]
    merged = merge(adapters, None, "lego", rank=rank, output_reweight=False, dtype=torch.float64)
    expected = (centers[0] * torch.arange(1.0, rank + 1)) @ centers[1].T
    got = merged.layers["unet.a"].delta(torch.float64)
    assert merged.layers["unet.a"].rank == rank
    assert float((got - expected).norm() / expected.norm()) < 0.05


def test_reweighting_restores_sizes() -> None:
    pair = [adapter(1, 4), adapter(2, 4)]
    bare = merge(pair, None, "lego", rank=2, **EXACT)
    peaked = merge(pair, None, "lego", rank=2, output_reweight=False, dtype=torch.float64)
    spread = merge(pair, None, "lego", rank=2, dtype=torch.float64)
    for path in SHAPES:
        assert float(dense(peaked, path).norm()) >= float(dense(bare, path).norm())
        torch.testing.assert_close(dense(spread, path), dense(peaked, path) * 2**0.5)


def test_more_clusters_than_units_are_all_units() -> None:
    merged = merge(family(), None, "lego", rank=500, output_reweight=False, dtype=torch.float64)
    for path in SHAPES:
        torch.testing.assert_close(dense(merged, path), weighted(deltas(family(), path), [1.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    "options", [{"similarity": 0.0}, {"similarity": 1.5}, {"iterations": 0}, {"rank": "energy"}]
)
def test_settings_without_meaning_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        merge(family(), None, "lego", **options)  # type: ignore[arg-type]
