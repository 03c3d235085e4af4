"""Updates folded into the weight inside compiled graphs equal updates added to the output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor, nn

from loracomp.fusion import Program, folded
from loracomp.fusion.stacked import StackedUpdate
from loracomp.lowrank import LowRank
from loracomp.pipeline import attach

FEW: dict[str, Any] = {"num_inference_steps": 2}
INSIDE: dict[str, Any] = {"backend": "eager", "fullgraph": True, "dynamic": False}


def scene(dtype: torch.dtype = torch.float64, bias: bool = True) -> tuple[nn.Linear, StackedUpdate, Tensor]:
    """A layer of 24 outputs and 16 inputs with two adapters, and inputs of two samples with five tokens."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 24, bias).requires_grad_(False)
    layers = [LowRank(torch.randn(rank, 16), 0.1 * torch.randn(24, rank), alpha=rank / 2) for rank in (3, 5)]
    layer = layer.to(dtype)
    update = StackedUpdate(list(enumerate(layers)), layer)
    update.gate.copy_(torch.linspace(-1, 1, update.capacity))
    return layer, update, torch.randn(2, 5, 16, dtype=dtype)


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the weights that were folded, call by call."""
    torch._dynamo.reset()
    seen: list[torch.Size] = []
    plain = folded.folded_weight

    def spy(weight: Tensor, up: Tensor, gate: Tensor, down: Tensor) -> Tensor:
        seen.append(weight.shape)
        return plain(weight, up, gate, down)

    monkeypatch.setattr(folded, "folded_weight", spy)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_compiled_layer_folds_and_computes_the_same(bias: bool, folds: list[torch.Size]) -> None:
    layer, _, x = scene(bias=bias)
    expected = layer(x)
    assert not folds
    assert torch.allclose(torch.compile(layer, **INSIDE)(x), expected, rtol=1e-13, atol=1e-13)
    assert folds == [torch.Size((24, 16))]


@torch.no_grad()
def test_other_weights_take_the_same_graph(recompilations: Callable[[], Any]) -> None:
    torch._dynamo.reset()
    layer, update, x = scene()
    compiled = torch.compile(layer, **INSIDE)
    compiled(x)
    with recompilations() as count:
        for factor in (-0.3, 0.0, 2.0):
            update.gate.mul_(factor).add_(0.1)
            assert torch.allclose(compiled(x), layer(x), rtol=1e-13, atol=1e-13)
        assert count() == 0


@torch.no_grad()
@pytest.mark.parametrize("why", ["rows", "region", "hook", "dtype"])
def test_what_differs_between_tokens_or_is_not_plain_is_added_to_the_output(
    why: str, folds: list[torch.Size]
) -> None:
    layer, update, x = scene()
    if why == "rows":
        update.gate = torch.stack([update.gate[0], -update.gate[0]])
    elif why == "region":
        update.regions = {5: torch.rand(1, 5, update.capacity, dtype=x.dtype)}
    elif why == "hook":
        layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        layer.to(torch.float32)
        update.double()
        x = x.float()
    expected = layer(x)
    assert torch.allclose(torch.compile(layer, **INSIDE)(x), expected, rtol=1e-6)
    assert not folds


def test_gradients_reach_the_factors(folds: list[torch.Size]) -> None:
    layer, update, x = scene()
    update.up.requires_grad_(True)
    torch.compile(layer, **INSIDE)(x).square().sum().backward()
    assert update.up.grad is not None
    assert float(update.up.grad.abs().max()) > 0
    assert not folds


@torch.no_grad()
def test_a_gate_by_token_count_folds_elsewhere(folds: list[torch.Size]) -> None:
    layer, update, x = scene()
    update.regions = {7: torch.rand(1, 7, update.capacity, dtype=x.dtype)}
    assert torch.allclose(torch.compile(layer, **INSIDE)(x), layer(x), rtol=1e-13)
    assert len(folds) == 1


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_pictures_are_the_same(kind: str, folds: list[torch.Size]) -> None:
    pipe = tiny_pipeline(kind)
    adapters = [random_adapter(layer_table(pipe), seed=n, size=0.3, name=f"a{n}") for n in range(2)]
    for program in (Program("merge", (1.0, 0.5)), Program("switch", (0.7, 1.0))):
        with attach(pipe, adapters, program):
            expected = run(pipe, **FEW)
        with attach(pipe, adapters, program, compile={"backend": "eager"}):
            assert torch.allclose(run(pipe, **FEW), expected, rtol=1e-4, atol=1e-5)
    assert folds


@torch.no_grad()
def test_what_rounding_costs(folds: list[torch.Size]) -> None:
    """In half precision the folded layer's error stays near that of the output's own rounding."""
    layer, update, x = scene()
    exact = layer(x)
    half, halves, _ = scene(torch.bfloat16)
    halves.gate.copy_(update.gate)
    errors = [
        float((way(x.bfloat16()).double() - exact).norm() / exact.norm())
        for way in (half, torch.compile(half, **INSIDE))
    ]
    assert len(folds) == 1
    assert errors[1] < 2 * errors[0] < 2e-2


KERNEL = """
import torch
from loracomp.fusion import kernels
for rows, columns, rank in ((8, 16, 8), (70, 130, 40), (140, 96, 160), (24, 200, 64)):
    weight, up = torch.randn(rows, columns), torch.randn(rows, rank)
    gate, down = torch.randn(1, rank), torch.randn(rank, columns)
    found = kernels.launch(kernels._fold, weight, up, gate, down)
    wanted = weight.double() + (up.double() * gate) @ down.double()
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6, (rows, columns, rank)
"""


def test_the_kernel_computes_the_sum() -> None:
    """In Triton's interpreter, which has to be chosen before Triton is loaded."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KERNEL],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
