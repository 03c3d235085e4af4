"""How ranks are given: fair to quiet adapters, best for the sum, by energy."""

from __future__ import annotations

import pytest
import torch
from dense_merges import adapter, family

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion.offline import carried_out, merge, plan
from loracomp.fusion.offline.rank import RankRule, allocated
from loracomp.lowrank import LowRank, norm, singular_values


def kept(adapters: list[Adapter], weights: list[float] | None = None, **settings: object) -> list[float]:
    report = carried_out(plan(adapters, weights, "svd", **settings))[1]  # type: ignore[arg-type]
    assert all(value is not None for value in report.kept)
    return [float(value or 0) for value in report.kept]


def test_a_quiet_adapter_does_not_vanish() -> None:
    wide = {"unet.a": (96, 80), "unet.b": (64, 12, 3, 3)}
    loud, quiet = adapter(1, 6, size=30.0, shapes=wide), adapter(2, 6, shapes=wide)
    best = kept([loud, quiet], rank=6, fair_ranks=False)
    fair = kept([loud, quiet], rank=6)
    assert best[1] < 0.15
    assert min(fair) > 0.5


def test_fairness_costs_nothing_where_the_sum_fits() -> None:
    shared = family()[0]
    twins = [shared, Adapter({p: LowRank(v.down, v.up.flip(0)) for p, v in shared.layers.items()}, "custom")]
    merged, report = carried_out(plan(twins, [1.0, 20.0], "svd", rank=3, dtype=torch.float64))
    assert report.error < 1e-9
    assert set(merged.ranks) == {3}


def test_weights_do_not_change_who_gets_ranks() -> None:
    wide = {"unet.a": (96, 80)}
    pair = [adapter(1, 5, shapes=wide), adapter(2, 5, shapes=wide)]
    assert min(kept(pair, rank=4)) > 0.4
    assert min(kept(pair, [1e-2, 1.0], rank=4)) > 0.4
    assert min(kept(pair, [1e-2, 1.0], rank=4, fair_ranks=False)) < 0.2


@pytest.mark.parametrize("total", range(9))
def test_allocation_minimises_the_largest_relative_residual(total: int) -> None:
    spectra = [torch.tensor([9.0, 1.0, 0.5]), torch.tensor([2.0, 2.0, 2.0, 2.0]), torch.tensor([0.1])]

    def worst(counts: list[int]) -> float:
        return max(float(s[k:].norm() / s.norm()) for s, k in zip(spectra, counts, strict=True))

    choices = [[a, b, c] for a in range(4) for b in range(5) for c in range(2) if a + b + c == min(total, 8)]
    found = allocated(spectra, total)
    assert sum(found) == min(total, 8)
    assert worst(found) == pytest.approx(min(map(worst, choices)))


def test_auto_keeps_the_share_of_every_adapter() -> None:
    adapters = [adapter(1, 6, size=20.0), adapter(2, 5)]
    merged = merge(adapters, None, "svd", rank="auto:0.9", dtype=torch.float64)
    for path, layer in merged.layers.items():
        left = torch.linalg.qr(layer.up.flatten(1)).Q
        right = torch.linalg.qr(layer.down.flatten(1).T).Q
        for one in adapters:
            matrix = one.layers[path].delta(torch.float64).flatten(1)
            held = max(float((left.T @ matrix).norm()), float((matrix @ right).norm()))
            assert held**2 >= 0.9 * float(matrix.norm()) ** 2 - 1e-9
    assert sum(layer.rank for layer in merged.layers.values()) < 11 * len(merged.layers)


def test_energy_takes_the_fewest_ranks_of_the_sum() -> None:
    merged = merge(family(), None, "svd", rank="energy:0.9", dtype=torch.float64)
    exact = merge(family(), None, "fedsvd", dtype=torch.float64, samples=[1, 1, 1])
    for path, layer in merged.layers.items():
        energy = singular_values(exact.layers[path]).square().cumsum(0)
        assert layer.rank == int((energy < 0.9 * energy[-1]).sum()) + 1
        assert norm(layer) ** 2 >= 9 * 0.9 * float(energy[-1]) - 1e-9


@pytest.mark.parametrize("text", ["0", 0, -3, "x", "energy:2", "auto:", "energy:nan", "limit"])
def test_ranks_that_mean_nothing_are_refused(text: int | str) -> None:
    with pytest.raises(UsageError, match="rank"):
        RankRule.parse(text)
