"""Random choices are functions of seed and position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loracomp.training.order import Chances, draw, generator_for, picture_order
from loracomp.training.schedule import rate


@given(st.integers(1, 9), st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_order_does_not_depend_on_where_it_was_started(
    count: int, start: int, first: int, second: int
) -> None:
    whole = picture_order(3, start, first + second, count)
    parts = [picture_order(3, start, first, count), picture_order(3, start + first, second, count)]
    assert torch.equal(whole, torch.cat(parts))


@given(st.integers(1, 9), st.integers(0, 5))
def test_every_epoch_has_every_picture_once(count: int, epoch: int) -> None:
    order = picture_order(0, epoch * count, count, count)
    assert sorted(order.tolist()) == list(range(count))


def test_seeds_and_purposes_have_streams_of_their_own() -> None:
    streams = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1)]
    values = {float(torch.rand((), generator=generator_for(*stream))) for stream in streams}
    assert len(values) == len(streams)


def test_draw_is_repeatable_and_moves_with_its_position() -> None:
    one, same, other = (draw(5, position, 8, 3, (2, 4, 4), Chances()) for position in (16, 16, 24))
    assert torch.equal(one.noise, same.noise)
    assert torch.equal(one.level, same.level)
    assert not torch.equal(one.noise, other.noise)


def test_chances_are_met() -> None:
    chances = Chances(flip=0.5, empty=0.1, terminal=0.05, offset=0.0)
    many = draw(0, 0, 20_000, 7, (1, 1, 1), chances)
    shares = [float(flags.float().mean()) for flags in (many.mirrored, many.uncaptioned, many.terminal)]
    assert shares == pytest.approx([0.5, 0.1, 0.05], abs=0.01)


def test_noise_offset_is_constant_over_a_channel() -> None:
    plain = draw(0, 0, 4, 3, (2, 8, 8), Chances())
    moved = draw(0, 0, 4, 3, (2, 8, 8), Chances(offset=0.5))
    difference = moved.noise - plain.noise
    torch.testing.assert_close(difference, difference[..., :1, :1].expand_as(difference), atol=1e-6, rtol=0)
    assert float(difference.abs().max()) > 0


def test_learning_rate_rises_and_falls() -> None:
    rates = [rate(step, peak=1.0, steps=100, warmup=10, shape="cosine") for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    flat = [rate(step, peak=1.0, steps=100, warmup=0, shape="constant") for step in range(100)]
    assert set(flat) == {1.0}
