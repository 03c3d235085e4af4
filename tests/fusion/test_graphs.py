"""Adapters on models that were compiled before they came are never dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.pipeline import attach

FEW: dict[str, Any] = {"num_inference_steps": 2}


@pytest.fixture(autouse=True)
def as_torch_comes() -> Iterator[None]:
    """The compiler as it is before any adapter was attached in this process."""
    torch._dynamo.reset()
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    yield
    torch._dynamo.reset()


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def scene() -> tuple[Any, Adapter, Tensor, Tensor]:
    """A pipeline, an adapter, and what is drawn without and with it, all eager."""
    pipe = tiny_pipeline("flux")
    adapter = random_adapter(layer_table(pipe), size=0.3)
    plain = run(pipe, **FEW)
    with attach(pipe, [adapter]):
        wanted = run(pipe, **FEW)
    assert relative(wanted, plain) > 1e-2
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    return pipe, adapter, plain, wanted


def test_adapters_act_on_blocks_that_are_compiled_already() -> None:
    pipe, adapter, plain, wanted = scene()
    pipe.transformer.compile_repeated_blocks(backend="eager")
    assert relative(run(pipe, **FEW), plain) < 1e-5
    for _ in range(2):
        with attach(pipe, [adapter]):
            assert relative(run(pipe, **FEW), wanted) < 1e-5
        assert relative(run(pipe, **FEW), plain) < 1e-5


def test_graphs_of_another_pipeline_are_not_taken() -> None:
    pipe, adapter, plain, wanted = scene()
    other = tiny_pipeline("flux")
    other.transformer.compile(backend="eager")
    assert relative(run(other, **FEW), plain) < 1e-5
    counters = torch._dynamo.utils.counters["stats"]
    with attach(pipe, [adapter], compile={"backend": "eager"}):
        made = []
        for _ in range(3):
            assert relative(run(pipe, **FEW), wanted) < 1e-5
            assert relative(run(other, **FEW), plain) < 1e-5
            made.append(counters["unique_graphs"])
    assert made[0] == made[-1]
