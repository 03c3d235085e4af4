"""Each merge method against a dense float64 reference, with mixed ranks, alphas and layers."""

from __future__ import annotations

from typing import Any

import dense_merges as ref
import pytest
import torch
from dense_merges import SHAPES, adapter, deltas, dense, family

from loracomp.adapter import Adapter
from loracomp.fusion.offline import MERGES, merge
from loracomp.fusion.offline import dense as blockwise
from loracomp.fusion.offline.parents import Family
from loracomp.lowrank import LowRank, zero

WEIGHTS = [1.0, -0.6, 0.4]
FULL = 64
"""A rank that cuts nothing off in the layers of the tests."""


def close(merged: Adapter, path: str, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    gap = float((dense(merged, path) - expected).norm())
    assert gap <= tolerance * max(float(expected.norm()), 1e-9), (path, gap, float(expected.norm()))


@pytest.mark.parametrize("path", SHAPES)
def test_concat_is_the_exact_sum(path: str) -> None:
    exact = ref.weighted(deltas(family(), path), WEIGHTS)
    merged = merge(family(), WEIGHTS, "concat", dtype=torch.float64)
    close(merged, path, exact, 1e-6)
    assert merged.layers[path].rank == sum(a.layers[path].rank for a in family() if path in a.layers)
    assert merged.layers[path].weight_shape == SHAPES[path]


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_svd_without_fairness_is_eckart_young(path: str, rank: int) -> None:
    merged = merge(family(), WEIGHTS, "svd", rank=rank, fair_ranks=False, dtype=torch.float64)
    close(merged, path, ref.truncated(ref.weighted(deltas(family(), path), WEIGHTS), rank), 1e-9)


@pytest.mark.parametrize("path", SHAPES)
def test_fedsvd_is_the_exact_average_with_orthonormal_inputs(path: str) -> None:
    merged = merge(family(), [100, 300, 600], "fedsvd", dtype=torch.float64)
    close(merged, path, ref.weighted(deltas(family(), path), [0.1, 0.3, 0.6]), 1e-10)
    down = merged.layers[path].down.flatten(1)
    torch.testing.assert_close(down @ down.T, torch.eye(len(down), dtype=torch.float64))


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_trims_elects_and_averages(path: str, density: float) -> None:
    merged = merge(family(), WEIGHTS, "ties", rank=FULL, density=density, dtype=torch.float64)
    close(merged, path, ref.ties(deltas(family(), path), WEIGHTS, density))


@pytest.mark.parametrize("path", SHAPES)
def test_breadcrumbs_drops_both_tails(path: str) -> None:
    options: dict[str, Any] = {"density": 0.6, "outliers": 0.1}
    merged = merge(family(), WEIGHTS, "breadcrumbs", rank=FULL, dtype=torch.float64, **options)
    close(merged, path, ref.breadcrumbs(deltas(family(), path), WEIGHTS, 0.6, 0.1))


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("elect", [True, False])
@pytest.mark.parametrize("method", ["dare", "della"])
def test_random_pruning_is_seeded_by_parent_and_fused_as_stated(path: str, method: str, elect: bool) -> None:
    settings: dict[str, Any] = {"rank": FULL, "dtype": torch.float64, "elect": elect, "seed": 5}
    alone = []
    for index in range(3):
        only = [float(i == index) for i in range(3)]
        # Election of one alone is itself, so this is the pruned update.
        pruned = dense(merge(family(), only, method, **settings), path)
        alone.append(torch.where(pruned.abs() > 1e-5 * pruned.abs().max(), pruned, 0.0))
    parts = [w * p for w, p in zip(WEIGHTS, alone, strict=True)]
    expected = ref.elected(parts) if elect else torch.stack(parts).sum(0)
    close(merge(family(), WEIGHTS, method, **settings), path, expected, 1e-4)
    for pruned, original in zip(alone, deltas(family(), path), strict=True):
        kept = pruned != 0
        assert kept.sum() == 0 or 0.2 < kept.double().mean() < 0.8
        ratio = pruned[kept] / original[kept]
        if method == "dare":
            torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0), atol=1e-3, rtol=1e-3)
        elif len(ratio):
            assert 1 / 0.65 - 1e-2 < float(ratio.min()) <= float(ratio.max()) < 1 / 0.35 + 1e-2


def test_della_keeps_large_entries_more_often_and_divides_by_their_probability() -> None:
    rows = torch.arange(1.0, 1001.0).expand(400, -1)
    one = Adapter({"unet.a": LowRank(rows[:1].contiguous(), torch.ones(400, 1))}, "custom")
    merged = merge([one], None, "della", rank=FULL * 8, density=0.5, window=0.6, dtype=torch.float64)
    delta = merged.layers["unet.a"].delta(torch.float64) / rows
    expected = 0.5 + 0.6 * (torch.arange(1000, dtype=torch.float64) / 999 - 0.5)
    kept = (delta > 0.5).double().mean(0)
    assert float((kept - expected).abs().max()) < 0.13
    assert abs(float(kept[:100].mean()) - float(expected[:100].mean())) < 0.01
    assert float(delta.mean()) == pytest.approx(1.0, abs=0.01)


def test_dare_is_right_on_average() -> None:
    path = "unet.blocks.0.to_q"
    exact = ref.weighted(deltas(family(), path), WEIGHTS)
    runs = [dense(merge(family(), WEIGHTS, "dare", rank=FULL, seed=seed), path) for seed in range(150)]
    mean = torch.stack(runs).mean(0)
    assert float((runs[0] - exact).norm() / exact.norm()) > 0.5
    assert float((mean - exact).norm() / exact.norm()) < 0.15


@pytest.mark.parametrize("method", ["ties", "dare", "della", "breadcrumbs"])
def test_the_size_of_blocks_changes_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = merge(family(), WEIGHTS, method, rank=FULL)
    monkeypatch.setattr(blockwise, "_BLOCK_ENTRIES", 40)
    for path, item in merge(family(), WEIGHTS, method, rank=FULL).layers.items():
        torch.testing.assert_close(item.delta(), whole.layers[path].delta(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rho", "limit"), [(0.0, 1.0), (0.5, 0.3), (1.0, 0.05)])
def test_lion_makes_norms_alike_and_conflicts_orthogonal(rho: float, limit: float) -> None:
    first, second, third = family()
    twin = first.layers["unet.blocks.0.to_q"]
    noise = second.layers["unet.blocks.0.to_q"].scaled(0.2)
    near = LowRank(torch.cat([twin.down, noise.down]), torch.cat([twin.up, noise.up * noise.scale], 1), 5.0)
    adapters = [first, Adapter({**second.layers, "unet.blocks.0.to_q": near}, "custom"), third]
    merged = merge(adapters, WEIGHTS, "lion", consistency=rho, conflict=limit, dtype=torch.float64)
    peaks = Family(tuple(adapters), tuple(WEIGHTS)).peaks
    for path in SHAPES:
        close(merged, path, ref.lion(deltas(adapters, path), peaks, WEIGHTS, rho, limit), 1e-8)


def test_lion_leaves_layers_alone_that_are_off_on_purpose() -> None:
    quiet = Adapter(
        {path: item.scaled(1e-4 if "to_q" in path else 1.0) for path, item in family()[0].layers.items()},
        "custom",
    )
    merged = merge([quiet, family()[1]], None, "lion", consistency=1.0, dtype=torch.float64)
    parts = deltas([quiet, family()[1]], "unet.blocks.0.to_q")
    close(merged, "unet.blocks.0.to_q", parts[0] + parts[1], 1e-9)


@pytest.mark.parametrize("method", MERGES)
def test_every_method_merges_adapters_that_share_no_layer(method: str) -> None:
    left = adapter(1, 3, leave_out=[path for path in SHAPES if path.startswith("unet")])
    right = adapter(2, 2, leave_out=[path for path in SHAPES if path.startswith("text")])
    merged = merge([left, right], None, method)
    assert set(merged.layers) == set(SHAPES)
    assert all(bool(item.delta().isfinite().all()) for item in merged.layers.values())
    assert all(item.alpha is None for item in merged.layers.values())


@pytest.mark.parametrize("method", MERGES)
def test_zero_updates_stay_zero(method: str) -> None:
    nothing = Adapter({path: zero(shape) for path, shape in SHAPES.items()}, "custom")
    silent = family()[0].scaled(0.0)
    merged = merge([nothing, silent], None, method)
    assert all(float(item.delta().abs().sum()) == 0 for item in merged.layers.values())


@pytest.mark.parametrize("method", MERGES)
def test_the_same_merge_gives_the_same_bits(method: str) -> None:
    assert merge(family(), WEIGHTS if method != "fedsvd" else None, method).digest == (
        merge(family(), WEIGHTS if method != "fedsvd" else None, method).digest
    )


@pytest.mark.parametrize("side", [(600, 700), (1100, 520)])
@pytest.mark.parametrize("rank", [8, "energy:0.9"])
def test_large_dense_results_are_factored_near_the_optimum(side: tuple[int, int], rank: int | str) -> None:
    from loracomp.fusion.offline.rank import RankRule

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 200, generator=generator)).Q for n in side)
    values = torch.logspace(0, -3, 200)
    matrix = left * values @ right.T
    layer = blockwise.factored(matrix, side, RankRule.parse(rank))
    count = 8 if rank == 8 else int((values.square().cumsum(0) < 0.9 * values.square().sum()).sum()) + 1
    assert layer.rank == count
    best = float(values[count:].norm())
    assert float((layer.delta() - matrix).norm()) <= 1.02 * best
