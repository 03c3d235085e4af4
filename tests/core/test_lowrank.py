"""Laws of factor-space mathematics, against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loracomp import lowrank
from loracomp.lowrank import LowRank


def layer(
    seed: int, rank: int, out: int = 7, into: int = 5, kernel: int = 0, alpha: float | None = None
) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    tail = (kernel, kernel) if kernel else ()
    down = torch.randn((rank, into, *tail), generator=g, dtype=torch.float64)
    up = torch.randn((out, rank, *([1] * len(tail))), generator=g, dtype=torch.float64)
    return LowRank(down, up, alpha)


layers = st.builds(
    layer,
    st.integers(0, 2**20),
    st.integers(1, 9),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([0, 1, 3]),
    st.one_of(st.none(), st.floats(-4, 4)),
)


@given(layers)
@settings(max_examples=60, deadline=None)
def test_the_canonical_form_is_the_same_update(item: LowRank) -> None:
    dense = item.delta(torch.float64)
    torch.testing.assert_close(lowrank.canonical(item).delta(torch.float64), dense)
    torch.testing.assert_close(item.folded().delta(torch.float64), dense)
    assert lowrank.norm(item) == pytest.approx(float(dense.norm()), abs=1e-6)
    values = torch.linalg.svdvals(dense.flatten(1))
    torch.testing.assert_close(lowrank.singular_values(item)[: len(values)], values[: item.rank])


@given(st.integers(0, 2**20), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_canonical_form_ignores_the_gauge(seed: int, rank: int) -> None:
    item = layer(seed, rank)
    mix = (
        torch.eye(rank, dtype=torch.float64) * 2 + layer(seed + 1, rank, rank, rank).delta(torch.float64) / 9
    )
    turned = LowRank(torch.linalg.solve(mix, item.down), item.up @ mix)
    torch.testing.assert_close(turned.delta(torch.float64), item.delta(torch.float64))
    values = lowrank.singular_values(item)
    if rank == 1 or float((values[:-1] - values[1:]).min()) > 1e-3 * float(values[0]):
        torch.testing.assert_close(
            lowrank.canonical(turned).up, lowrank.canonical(item).up, atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("kernel", [0, 3])
def test_inner_products_and_cosines_match_dense(kernel: int) -> None:
    first, second = layer(1, 3, kernel=kernel, alpha=2.0), layer(2, 4, kernel=kernel)
    dense = float((first.delta(torch.float64) * second.delta(torch.float64)).sum())
    assert lowrank.inner(first, second) == pytest.approx(dense)
    assert lowrank.cosine(first, first) == pytest.approx(1.0)
    assert lowrank.cosine(first, first.scaled(-2.0)) == pytest.approx(-1.0)
    assert lowrank.cosine(first, first.scaled(0.0)) == 0.0


def test_truncation_is_the_best_approximation() -> None:
    item = layer(3, 5)
    error = (lowrank.truncate(item, 2).delta(torch.float64) - item.delta(torch.float64)).norm()
    tail = lowrank.singular_values(item)[2:].norm()
    torch.testing.assert_close(error, tail)
    torch.testing.assert_close(lowrank.truncate(item, 5).delta(torch.float64), item.delta(torch.float64))


def test_concatenation_is_the_exact_sum() -> None:
    items = [layer(4, 2, alpha=3.0), layer(5, 4), layer(6, 1, alpha=-1.0)]
    total = sum(item.delta(torch.float64) for item in items)
    assert isinstance(total, torch.Tensor)
    torch.testing.assert_close(lowrank.concatenate(items).delta(torch.float64), total)
    assert lowrank.concatenate(items).rank == 7


def test_scaling_scales_the_update_and_keeps_the_factors() -> None:
    item = layer(7, 3, alpha=1.5)
    torch.testing.assert_close(item.scaled(0.4).delta(), item.delta() * 0.4)
    assert item.scaled(0.4).down is item.down


@pytest.mark.parametrize(
    ("down", "up"), [((2, 3), (4, 3)), ((2, 3, 3, 3), (4, 2)), ((2, 3), (4, 2, 1, 1)), ((2,), (2,))]
)
def test_factors_that_do_not_fit_are_refused(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="factors"):
        LowRank(torch.zeros(down), torch.zeros(up))
