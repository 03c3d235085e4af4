"""Layers while they are marked: strength, rank, other adapters, and the twin in the same parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import layer_table, random_adapter, run, tiny_pipeline

from loracomp import attach, detach
from loracomp.lowrank import truncate
from loracomp.training.inject import inject
from loracomp.training.watermark.dial import Dial, adopt, shadow_layers

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline("sd15")


def test_the_dial_turns_what_it_says(pipe: Any) -> None:
    """Strength, twin, cut rank and other adapters against attaching the same adapters."""
    shapes = layer_table(pipe)
    twin = random_adapter(shapes, TARGETS, rank=3, seed=1, size=0.2)
    other = random_adapter(shapes, TARGETS, rank=2, seed=2, size=0.2)
    plain = run(pipe)

    def wanted(adapters: list[Any], weights: list[float]) -> torch.Tensor:
        attach(pipe, adapters, weights=weights)
        try:
            return run(pipe)
        finally:
            detach(pipe)

    half, both = wanted([twin], [0.5]), wanted([twin, other], [1.0, 0.7])
    cut = wanted([twin.map(lambda layer: truncate(layer, 1))], [1.0])
    injected = inject(pipe, rank=4, alpha=4.0, targets=TARGETS, text_encoders=(), seed=0)
    try:
        factors = adopt(injected, twin)
        dial = Dial(injected, shadow_layers([other], tuple(injected.layers)))
        dial.weights = (0.0,)
        dial.strength = torch.tensor([0.5, 0.5])  # guidance doubles the batch
        torch.testing.assert_close(run(pipe), half, atol=2e-4, rtol=2e-4)
        dial.strength, dial.weights = None, (0.7,)
        torch.testing.assert_close(run(pipe), both, atol=2e-4, rtol=2e-4)
        dial.weights, dial.kept = (0.0,), 1
        torch.testing.assert_close(run(pipe), cut, atol=2e-4, rtol=2e-4)
        dial.kept = 0
        for parameter in injected.tensors.values():
            parameter.data.add_(1.0)
        dial.forget()
        moved = run(pipe)
        with dial.twin(factors):
            full = run(pipe)
        torch.testing.assert_close(full, wanted_full(pipe, injected, twin), atol=2e-4, rtol=2e-4)
        assert float((moved - full).abs().max()) > 1e-2
        dial.remove()
    finally:
        injected.remove()
    assert torch.equal(run(pipe), plain)


def test_in_half_precision_layers_do_not_keep_the_twins_factors(pipe: Any) -> None:
    twin = random_adapter(layer_table(pipe), TARGETS, rank=2, seed=3)
    injected = inject(pipe, rank=4, alpha=4.0, targets=TARGETS, text_encoders=(), seed=0)
    try:
        factors, dial = adopt(injected, twin), Dial(injected)
        for parameter in injected.tensors.values():
            parameter.data.add_(0.5)
        layer = next(layer for layer in injected.layers.values() if hasattr(layer, "in_features"))
        x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            own = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad(), dial.twin(factors):
                other = layer(x)
            after = layer(x)
        dial.remove()
    finally:
        injected.remove()
    assert torch.equal(own, after)
    assert float((own - other).detach().abs().max()) > 0.1


def wanted_full(pipe: Any, injected: Any, twin: Any) -> torch.Tensor:
    with injected.silent():
        attach(pipe, [twin])
        try:
            return run(pipe)
        finally:
            detach(pipe)
