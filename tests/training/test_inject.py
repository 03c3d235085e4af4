"""Layers go on and off without a trace; nothing-learned is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import layer_table, run

from loracomp.errors import TrainingError, UsageError
from loracomp.pipeline import denoiser_of
from loracomp.training.inject import check_learned, inject
from loracomp.training.wiring import layer_shapes, row_of


def _inject(pipe: Any, **changes: Any) -> Any:
    settings = {
        "rank": 2,
        "alpha": 2.0,
        "targets": ["to_q", "to_v"],
        "text_encoders": ("text_encoder",),
        "seed": 0,
    }
    return inject(pipe, **(settings | changes))


def test_fresh_layers_change_nothing_and_removal_restores_every_module(pipe: Any) -> None:
    before = run(pipe)
    modules = {name: type(module) for name, module in denoiser_of(pipe)[1].named_modules()}
    injected = _inject(pipe)
    torch.testing.assert_close(run(pipe), before, atol=1e-5, rtol=1e-5)
    for name, tensor in injected.tensors.items():
        if name.endswith(".up"):
            tensor.data.fill_(0.3)
    assert not torch.allclose(run(pipe), before, atol=1e-3)
    with injected.silent():
        assert torch.equal(run(pipe), before)
    injected.remove()
    assert torch.equal(run(pipe), before)
    after = {name: type(module) for name, module in denoiser_of(pipe)[1].named_modules()}
    assert after == modules


def test_only_the_layers_are_trainable_and_paths_are_classic(pipe: Any) -> None:
    table = layer_table(pipe)
    assert layer_shapes(pipe) == table
    injected = _inject(pipe)
    try:
        trainable = {id(p) for part in injected.models for p in part.parameters() if p.requires_grad}
        assert trainable == {id(p) for p in injected.tensors.values()}
        assert all(p.dtype == torch.float32 for p in injected.tensors.values())
        assert {path.rsplit(".", 1)[-1] for path in injected.layers} >= {"to_q", "to_v", "q_proj"}
        assert set(injected.layers) <= set(table)
    finally:
        injected.remove()


def test_down_matrices_depend_on_seed_and_path_alone(pipe: Any) -> None:
    values = []
    for seed, targets in ((0, ["to_q", "to_v"]), (0, ["to_q"]), (1, ["to_q"])):
        torch.manual_seed(len(values))
        injected = _inject(pipe, seed=seed, targets=targets, text_encoders=())
        path = next(path for path in injected.layers if path.endswith("to_q"))
        values.append(injected.tensors[f"{path}.down"].detach().clone())
        injected.remove()
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_unknown_targets_list_the_layers(pipe: Any) -> None:
    with pytest.raises(UsageError, match=r"targets to_z: no such layers in .* it has .*to_k"):
        _inject(pipe, targets=["to_z"])
    assert row_of(pipe).pipeline == type(pipe).__name__


def test_learned_or_not() -> None:
    good = {"unet.a.down": torch.ones(2), "unet.a.up": torch.tensor([0.0, 1e-8]), "unet.b.up": torch.zeros(2)}
    check_learned(good)
    with pytest.raises(TrainingError, match="text_encoder: nothing was learned"):
        check_learned(good | {"text_encoder.a.down": torch.ones(2), "text_encoder.a.up": torch.zeros(2)})
    with pytest.raises(TrainingError, match=r"unet\.a\.up: not finite"):
        check_learned(good | {"unet.a.up": torch.tensor([1.0, float("nan")])})
