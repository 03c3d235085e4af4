"""Parity laws of the engine, on tiny pipelines of every kind against PEFT and against separate runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.errors import BaseMismatchError, UnknownNameError, UsageError
from loracomp.fusion import METHODS, Program
from loracomp.lowrank import LowRank
from loracomp.pipeline import attach, base_of, compose, denoiser_of, detach, layers_of

SUFFIXES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "proj_in")


def adapters_for(pipe: Any, count: int = 3) -> list[Adapter]:
    shapes = layer_table(pipe)
    return [
        random_adapter(shapes, SUFFIXES, rank=2 + n, alpha=float(1 + n), seed=n, name=f"a{n}")
        for n in range(count)
    ]


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def with_peft(pipe: Any, adapters: list[Adapter], weights: list[float]) -> Tensor:
    """A run in which PEFT's own layers hold the denoiser's part of the adapters."""
    from peft import LoraConfig

    denoiser = denoiser_of(pipe)[1]
    names = []
    for number, adapter in enumerate(adapters):
        layers = adapter.component(denoiser_of(pipe)[0])
        config = LoraConfig(
            r=adapter.ranks[0], lora_alpha=next(iter(layers.values())).alpha, target_modules=list(layers)
        )
        names.append(f"p{number}")
        denoiser.add_adapter(config, names[-1])
        for path, layer in layers.items():
            module = denoiser.get_submodule(path)
            module.lora_A[names[-1]].weight.data.copy_(layer.down)
            module.lora_B[names[-1]].weight.data.copy_(layer.up)
    denoiser.set_adapters(names, weights)
    return run(pipe)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("count", [1, 3])
def test_merge_equals_sequential_peft(kind: str, count: int) -> None:
    pipe, weights = tiny_pipeline(kind), [0.7, -0.4, 1.3][:count]
    prefix = denoiser_of(pipe)[0] + "."
    adapters = [
        Adapter({p: v for p, v in a.layers.items() if p.startswith(prefix)}, "custom", a.name)
        for a in adapters_for(pipe, count)
    ]
    with attach(pipe, adapters, "merge", weights):
        ours = run(pipe)
    assert relative(ours, run(pipe)) > 1e-3
    assert relative(ours, with_peft(pipe, adapters, weights)) < 1e-5


def folded(pipe: Any, adapters: list[Adapter], weights: list[float]) -> Tensor:
    """A run with the sum of the updates added to the weights themselves."""
    layers = layers_of(pipe)
    pristine = {path: layer.weight.detach().clone() for path, layer in layers.items()}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, update in adapter.layers.items():
            layers[path].weight.data += weight * update.delta(torch.float64).float()
    result = run(pipe)
    for path, layer in layers.items():
        layer.weight.data.copy_(pristine[path])
    return result


def test_merge_equals_the_folded_weights(pipe: Any) -> None:
    shapes = layer_table(pipe)
    suffixes = (*SUFFIXES, "q_proj", "v_proj", "fc1")
    adapters = [random_adapter(shapes, suffixes, rank=3, alpha=2.0, seed=n, size=0.05) for n in range(2)]
    with attach(pipe, adapters, "merge", [0.8, 0.5]):
        ours = run(pipe)
    assert relative(ours, folded(pipe, adapters, [0.8, 0.5])) < 1e-5


def test_weight_zero_is_the_base_bit_for_bit(pipe: Any) -> None:
    base = run(pipe)
    with attach(pipe, adapters_for(pipe), "merge", [0.0, 0.0, 0.0]):
        assert torch.equal(run(pipe), base)


def state(pipe: Any) -> dict[str, Any]:
    """All there is to see of a pipeline's modules: names, classes, weights, hooks."""
    return {
        f"{name}.{path}": (
            type(module),
            sorted(vars(module)),
            len(module._forward_hooks),
            {k: v.clone() for k, v in module.named_parameters(recurse=False)},
        )
        for name, model in pipe.components.items()
        if isinstance(model, nn.Module)
        for path, module in model.named_modules()
    }


def test_detach_leaves_no_trace(pipe: Any) -> None:
    before, image = state(pipe), run(pipe)
    keys = list(denoiser_of(pipe)[1].state_dict())
    attach(pipe, adapters_for(pipe), "composite")
    assert list(denoiser_of(pipe)[1].state_dict()) == keys
    run(pipe)
    detach(pipe)
    after = state(pipe)
    assert before.keys() == after.keys()
    for path, (kind, attributes, count, weights) in before.items():
        assert (kind, attributes, count) == after[path][:3], path
        assert all(torch.equal(weights[key], after[path][3][key]) for key in weights), path
    assert torch.equal(run(pipe), image)


def test_one_adapter_is_the_same_in_every_method(pipe: Any) -> None:
    adapter = adapters_for(pipe, 1)
    results = []
    for method in METHODS:
        with attach(pipe, adapter, method, [0.9]):
            results.append(run(pipe))
    assert all(relative(result, results[0]) < 1e-5 for result in results)


class Trace:
    """Replays a switch by hand: another attachment for each step, through a step callback."""

    def __init__(self, pipe: Any, adapters: list[Adapter], active: list[int]) -> None:
        self.pipe, self.adapters, self.active = pipe, adapters, active

    def __call__(self, pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if step + 1 < len(self.active):
            attach(self.pipe, [self.adapters[self.active[step + 1]]], "merge")
        return values


def test_switch_equals_attaching_one_adapter_after_another(pipe: Any) -> None:
    prefix = denoiser_of(pipe)[0] + "."
    adapters = [
        Adapter({p: v for p, v in a.layers.items() if p.startswith(prefix)}, "custom")
        for a in adapters_for(pipe, 2)
    ]
    with attach(pipe, adapters, Program("switch", (1.0, 1.0), {"period": 0.5})):
        ours = run(pipe)
    attach(pipe, [adapters[0]], "merge")
    by_hand = run(pipe, callback_on_step_end=Trace(pipe, adapters, [0, 0, 1, 1]))
    assert relative(ours, by_hand) < 1e-6
    assert relative(ours, run(pipe)) > 1e-3


def one_prediction(pipe: Any, adapters: list[Adapter], program: Program | str) -> Tensor:
    """The denoiser's first output in a run, before guidance."""
    seen: list[Tensor] = []
    denoiser = denoiser_of(pipe)[1]
    attach(pipe, adapters, program)
    inner = denoiser.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        seen.append(output[0].clone())
        return output

    denoiser.forward = spy
    run(pipe)
    denoiser.forward = inner
    detach(pipe)
    return seen[0]


def test_composite_is_the_mean_of_separate_predictions(pipe: Any) -> None:
    prefix = denoiser_of(pipe)[0] + "."
    adapters = [
        Adapter({p: v for p, v in a.layers.items() if p.startswith(prefix)}, "custom")
        for a in adapters_for(pipe)
    ]
    alone = [one_prediction(pipe, [adapter], "merge") for adapter in adapters]
    together = one_prediction(pipe, adapters, "composite")
    assert relative(together, torch.stack(alone).mean(0)) < 1e-5


def test_weights_change_without_rebuilding(pipe: Any) -> None:
    adapters = adapters_for(pipe, 2)
    attachment = attach(pipe, adapters, "merge", [1.0, 0.0])
    updates = [update for _, update in attachment.updates.values()]
    attachment.set_program("merge", [0.2, 0.9])
    changed = run(pipe)
    assert [update for _, update in attachment.updates.values()] == updates
    with attach(pipe, adapters, "merge", [0.2, 0.9]):
        assert torch.equal(run(pipe), changed)


def test_a_batch_equals_single_images(pipe: Any) -> None:
    adapters, size = adapters_for(pipe, 2), {"height": 32, "width": 32, "num_inference_steps": 3}
    if hasattr(pipe, "tokenizer_3") or type(pipe).__name__ == "FluxPipeline":
        size["max_sequence_length"] = 16
    both = compose(pipe, "an apple", adapters, "composite", seed=5, batch=2, output_type="pt", **size)
    second = compose(pipe, "an apple", adapters, "composite", seed=6, output_type="pt", **size)
    assert relative(both[1], second[0]) < 1e-4


def test_the_wrong_base_is_named(pipe: Any) -> None:
    other = tiny_pipeline("flux" if hasattr(pipe, "unet") else "sd15")
    with pytest.raises(BaseMismatchError, match="made for custom, but the base is"):
        attach(pipe, adapters_for(other, 1))
    path = next(iter(layer_table(pipe)))
    odd = Adapter({path: LowRank(torch.zeros(1, 3), torch.zeros(5, 1))}, "sdxl", "odd")
    with pytest.raises(BaseMismatchError, match="odd: made for Stable Diffusion XL"):
        attach(pipe, [odd])
    assert base_of(pipe) == type(pipe).__name__


def test_bad_requests_are_refused(pipe: Any) -> None:
    adapters = adapters_for(pipe, 2)
    with pytest.raises(UsageError, match="one weight per adapter"):
        attach(pipe, adapters, "merge", [1.0])
    with (
        attach(pipe, adapters) as attachment,
        pytest.raises(UsageError, match="3 weights for 2 adapters"),
    ):
        attachment.set_weights([1.0, 1.0, 1.0])
    with pytest.raises(UsageError, match="no adapters"):
        attach(pipe, [])
    with pytest.raises(UnknownNameError, match="did you mean switch"):
        attach(pipe, adapters, "swich")
    with pytest.raises(UsageError, match="period"):
        attach(pipe, adapters, Program("switch", (1.0, 1.0), {"period": 2}))
    with pytest.raises(UsageError, match="wobble"):
        attach(pipe, adapters, Program("merge", (1.0, 1.0), {"wobble": 2}))
