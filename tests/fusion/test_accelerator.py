"""An accelerator stays on in every step of every branch, and the methods do not notice it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import layer_table, random_adapter, run, tiny_pipeline

from loracomp.adapter import Acceleration, Adapter
from loracomp.errors import UsageError
from loracomp.fusion import METHODS, Program
from loracomp.fusion.gated import usable
from loracomp.pipeline import attach, layers_of

weights = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=4)


@pytest.mark.parametrize("method", METHODS)
@given(values=weights, weight=st.floats(-2, 2, width=32), steps=st.integers(1, 30), data=st.data())
def test_its_column_is_its_weight_and_the_others_are_as_without(
    method: str, values: list[float], weight: float, steps: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(values)))
    mixed = (*values[:place], weight, *values[place:])
    plain = Program(method, tuple(values)).table(steps)
    table = Program(method, mixed, always=(place,)).table(steps)
    assert (table.gates[:, :, place] == weight).all()
    others = [index for index in range(len(mixed)) if index != place]
    assert torch.equal(table.gates[:, :, others], plain.gates)
    assert torch.equal(table.mix, plain.mix)


@pytest.mark.parametrize("method", METHODS)
def test_alone_it_is_on_throughout(method: str) -> None:
    table = Program(method, (0.5, 2.0), always=(0, 1)).table(3)
    assert torch.equal(table.gates, torch.tensor([0.5, 2.0]).expand(3, 1, 2))
    assert torch.equal(table.mix, torch.ones(3, 1))


def test_a_program_with_one_survives_json_and_older_programs_are_read() -> None:
    program = Program("switch", (1.0, 0.5), {"period": 0.5}, (1,))
    assert Program.from_json(program.to_json()) == program
    old = '{"method": "merge", "weights": [1.0], "options": {}}'
    assert Program.from_json(old) == Program("merge", (1.0,))


NONE = ("", "{", "[]", "null", '{"steps": 6}', '{"steps": 0, "guidance": 1}', '{"steps": "x", "guidance": 1}')


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_acceleration_counts_as_none(text: str) -> None:
    assert Adapter({}, "glyph", metadata={Acceleration.KEY: text}).accelerator is None


def test_the_header_says_how_to_draw() -> None:
    told = Acceleration(6, 1.5)
    assert Adapter({}, "glyph", metadata={Acceleration.KEY: told.to_json()}).accelerator == told
    assert Adapter({}, "glyph").accelerator is None


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline("sd15")


def _fast(adapter: Adapter) -> Adapter:
    return replace(adapter, metadata={Acceleration.KEY: Acceleration(4).to_json()})


@pytest.mark.parametrize("method", usable("tiny"))
@pytest.mark.parametrize("place", [0, 2])
def test_every_method_runs_as_if_it_were_part_of_the_base(pipe: Any, method: str, place: int) -> None:
    shapes = {path: shape for path, shape in layer_table(pipe).items() if path.startswith("unet")}
    fast = _fast(random_adapter(shapes, seed=9, size=0.2))
    others = [random_adapter(shapes, seed=seed, size=0.2) for seed in (1, 2)]
    with attach(pipe, [*others[:place], fast, *others[place:]], method) as attachment:
        assert attachment.program.always == (place,)
        together = run(pipe)
    layers: dict[str, Any] = {**layers_of(pipe)}
    before = {path: layers[path].weight.detach().clone() for path in fast.layers}
    for path, update in fast.layers.items():
        layers[path].weight.data += update.delta(torch.float64).float()
    with attach(pipe, others, method):
        folded = run(pipe)
    for path, weight in before.items():
        layers[path].weight.data.copy_(weight)
    torch.testing.assert_close(together, folded, atol=1e-4, rtol=1e-4)
    with attach(pipe, others, method):
        assert float((run(pipe) - together).norm() / together.norm()) > 1e-3


def test_weights_are_still_one_per_adapter(pipe: Any) -> None:
    shapes = layer_table(pipe)
    both = [_fast(random_adapter(shapes)), random_adapter(shapes, seed=1)]
    with pytest.raises(UsageError, match="one weight per adapter"):
        attach(pipe, both, "switch", [1.0])
