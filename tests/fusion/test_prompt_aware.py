"""w-switch and w-composite: turns and shares follow the importance; the text encoder tells it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import layer_table, random_adapter, run

from loracomp.adapter import Acceleration, Adapter
from loracomp.errors import UsageError
from loracomp.fusion import Program
from loracomp.fusion.prompt_aware import ABSENT, FLOOR, importance_of
from loracomp.pipeline import attach
from loracomp.pipeline.facts import resolve, without


def adapter(pipe: Any, words: str, seed: int = 0) -> Adapter:
    found = random_adapter(layer_table(pipe), ("attn2.to_q", "attn.to_q"), seed=seed, name=f"a{seed}")
    return replace(found, metadata={"modelspec.trigger_phrase": words})


@pytest.mark.parametrize(
    ("importance", "options", "turns"),
    [
        ([1, 1], {"period": 0.2, "tail": 0}, [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]),
        ([4, 1], {"period": 0.4, "tail": 0}, [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]),
        ([1, 4], {"period": 0.4, "tail": 0.3}, [0, 1, 1, 1, 1, 0, 1, 0, 0, 0]),
        ([1, 4], {"period": 0.4, "tail": 0.3, "subject": 1}, [0, 1, 1, 1, 1, 0, 1, 1, 1, 1]),
        ([1e-6, 1], {"period": 0.2, "tail": 1}, [0] * 10),
    ],
)
def test_turns_follow_importance(importance: list[float], options: dict[str, Any], turns: list[int]) -> None:
    gates = Program("w-switch", (1.0, 0.5), {"importance": importance, **options}).table(10).gates[:, 0]
    assert gates.argmax(1).tolist() == turns
    assert ((gates != 0).sum(1) == 1).all()


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(1, 30))
def test_shares_are_proportional(importance: list[float], steps: int) -> None:
    found = Program("w-composite", (1.0,) * len(importance), {"importance": importance}).table(steps)
    expected = torch.tensor(importance) / sum(importance)
    torch.testing.assert_close(found.mix, expected.expand(steps, -1))


def test_equal_importance_is_switch_and_composite() -> None:
    for ours, theirs, options in (("w-switch", "switch", {"tail": 0}), ("w-composite", "composite", {})):
        first, second = Program(ours, (1.0, 0.5), options).table(12), Program(theirs, (1.0, 0.5)).table(12)
        assert torch.equal(first.gates, second.gates)
        torch.testing.assert_close(first.mix, second.mix)


@pytest.mark.parametrize(
    "options",
    [{"importance": [1.0]}, {"importance": [0.0, 1.0]}, {"measure": "loud"}, {"period": 0}, {"subject": 5}],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Program("w-switch", (1.0, 1.0), options).table(4)


def test_importance_is_bounded_below() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert importance_of(x, x, y, "ablated") == FLOOR
    assert importance_of(x, x, -x, "triggers") == FLOOR
    assert importance_of(x, y, x, "ablated") == pytest.approx(1)
    assert importance_of(x, y, x, "triggers") == pytest.approx(1)


def test_words_are_taken_out_whole() -> None:
    assert without("a Red cat, redder cat", ["red"]) == "a cat, redder cat"
    assert without("mono style, a cat", ["mono style"]) == ", a cat"


def test_the_text_encoder_tells_the_importance(pipe: Any) -> None:
    adapters = [adapter(pipe, "red apple"), adapter(pipe, "watercolor", 1), adapter(pipe, "", 2)]
    program = resolve(pipe, "a red apple, watercolor", adapters, Program("w-composite"))
    values = program.options["importance"]
    assert len(values) == 3 and all(value >= FLOOR for value in values)
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=2e-4)
    assert resolve(pipe, "another prompt", adapters, program) == program
    swapped = resolve(pipe, "a red apple, watercolor", adapters[::-1], Program("w-composite"))
    assert swapped.options["importance"] == values[::-1]
    with attach(pipe, adapters, program):
        assert run(pipe).isfinite().all()


def test_ablation_and_accelerators(pipe: Any) -> None:
    fast = replace(adapter(pipe, "x", 3), metadata={Acceleration.KEY: Acceleration(4).to_json()})
    adapters = [adapter(pipe, "a red apple"), fast, adapter(pipe, "watercolor", 1)]
    found = resolve(pipe, "a red apple", adapters, Program("w-switch")).options["importance"]
    assert found[0] == ABSENT and found[1] == FLOOR and len(found) == 2


def test_methods_without_facts_are_left_alone(pipe: Any) -> None:
    program = Program("merge", (1.0,))
    assert resolve(pipe, "x", [adapter(pipe, "x")], program) is program
