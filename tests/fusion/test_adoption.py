"""Adapters that were loaded before: taken over as they act, and given back bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from predictions import relative
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.formats.reading import ERROR_KEY
from loracomp.fusion import Profile, Program
from loracomp.pipeline import attach, denoiser_of, detach, layers_of

SUFFIXES = ("to_q", "to_v", "ff.net.2", "q_proj")

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


def adapters(pipe: Any, count: int = 2) -> list[Adapter]:
    shapes = layer_table(pipe)
    return [
        random_adapter(shapes, SUFFIXES, rank=2 + n, alpha=1.5, seed=n, name=f"a{n}", size=0.2)
        for n in range(count)
    ]


def load(pipe: Any, adapter: Adapter, name: str) -> None:
    """``load_lora_weights`` of a state dict with PEFT's keys, denoiser and text encoders."""
    state: dict[str, Any] = {}
    for path, layer in adapter.layers.items():
        if not path.startswith("text_encoder.") and path.startswith("text"):
            continue
        component, _, inner = path.partition(".")
        has_text_model = hasattr(getattr(pipe, component), "text_model")
        inner = inner if has_text_model else inner.removeprefix("text_model.")
        state[f"{component}.{inner}.lora_A.weight"] = layer.down.clone()
        state[f"{component}.{inner}.lora_B.weight"] = layer.up.clone() * layer.scale
    pipe.load_lora_weights(state, adapter_name=name)


@pytest.fixture(params=["sd15", "sdxl", "sd3", "flux"])
def loaded(request: pytest.FixtureRequest) -> Any:
    """A pipeline with two adapters that were loaded and weighed the usual way."""
    pipe = tiny_pipeline(request.param)
    denoiser = denoiser_of(pipe)[0]
    for adapter in adapters(pipe):
        chosen = {p: v for p, v in adapter.layers.items() if p.startswith((denoiser, "text_encoder."))}
        load(pipe, Adapter(chosen, "custom"), adapter.name)
    pipe.set_adapters(["a0", "a1"], [0.7, -0.4])
    return pipe


def state(pipe: Any) -> dict[str, Any]:
    """Everything that PEFT and diffusers keep on a pipeline's modules."""
    found: dict[str, Any] = {"pipe": sorted(vars(pipe))}
    for name, model in pipe.components.items():
        if isinstance(model, nn.Module):
            found[name] = {key: value.clone() for key, value in model.state_dict().items()}
            for path, module in model.named_modules():
                plain = {
                    k: v for k, v in vars(module).items() if isinstance(v, (bool, str, list, float, int))
                }
                own = vars(module).get("scaling")
                scaling = dict(own) if isinstance(own, dict) else own
                found[f"{name}.{path}"] = (sorted(vars(module)), plain, scaling, len(module._forward_hooks))
    return found


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


def test_they_act_as_before_and_come_back_bit_for_bit(loaded: Any) -> None:
    loaded.disable_lora()
    base = run(loaded)
    loaded.enable_lora()
    image = run(loaded)
    before = state(loaded)
    with attach(loaded) as attachment:
        assert [adapter.name for adapter in attachment.adapters] == ["a0", "a1"]
        torch.testing.assert_close(attachment.program.weights, (0.7, -0.4))
        assert relative(run(loaded), image) < 1e-5
        attachment.set_program("merge", [0.0, 0.0])
        assert torch.equal(run(loaded), base)
    after = state(loaded)
    differing = [key for key in before if not same(before[key], after[key])]
    assert differing == []
    assert torch.equal(run(loaded), image)


def test_they_join_what_is_attached(loaded: Any) -> None:
    third = random_adapter(layer_table(loaded), ("to_q",), seed=9, size=0.2)
    names = [path for path in layers_of(loaded) if "lora_" in path or "base_layer" in path]
    assert names == []
    third = Adapter({p: v for p, v in third.layers.items() if p in layers_of(loaded)}, "custom", "third")
    with attach(loaded, [third], weights=[0.5]) as attachment:
        assert [adapter.name for adapter in attachment.adapters] == ["a0", "a1", "third"]
        torch.testing.assert_close(attachment.program.weights, (0.7, -0.4, 0.5))
        mixed = run(loaded)
    with attach(loaded, [third], "merge", [0.7, -0.4, 0.5]):
        assert torch.equal(run(loaded), mixed)
    with attach(
        loaded, [third], Program("merge", (0.5,), profiles=(Profile(text=0.5),), always=(0,))
    ) as again:
        assert again.program.always == (2,)
        assert again.program.profiles == (Profile(), Profile(), Profile(text=0.5))
    with attach(loaded, [third], "switch"):
        assert relative(run(loaded), mixed) > 1e-4
    with pytest.raises(UsageError, match="2 weights for 3 adapters"):
        attach(loaded, [third], weights=[1.0, 1.0])


def test_one_that_is_switched_off_or_fused_is_left_alone(loaded: Any) -> None:
    loaded.set_adapters(["a1"], [0.9])
    with attach(loaded) as attachment:
        assert [adapter.name for adapter in attachment.adapters] == ["a1"]
    loaded.disable_lora()
    with pytest.raises(UsageError, match="no adapters"):
        attach(loaded)
    loaded.enable_lora()
    loaded.fuse_lora(loaded._lora_loadable_modules)
    fused = run(loaded)
    with pytest.raises(UsageError, match="no adapters"):
        attach(loaded)
    extra = adapters(loaded, 1)
    with attach(loaded, extra, weights=[0.0]) as attachment:
        assert attachment.adapters == tuple(extra)
        assert torch.equal(run(loaded), fused)
    assert torch.equal(run(loaded), fused)


def test_strengths_per_block_are_kept() -> None:
    pipe = tiny_pipeline("sd15")
    for adapter in adapters(pipe, 1):
        load(pipe, Adapter({p: v for p, v in adapter.layers.items() if p.startswith("unet")}, "custom"), "a0")
    pipe.set_adapters("a0", [{"unet": {"down": 0.3, "mid": 1.0, "up": 0.0}}])
    image = run(pipe)
    with attach(pipe):
        assert relative(run(pipe), image) < 1e-5


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "rslora"])
def test_other_kinds_of_adapters_are_taken_over_with_their_error(kind: str) -> None:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    pipe = tiny_pipeline("sd15")
    options = {"target_modules": ["to_q", "ff.net.2"], "r": 4}
    torch.manual_seed(0)
    config = {
        "dora": lambda: LoraConfig(**options, lora_alpha=3, use_dora=True),
        "rslora": lambda: LoraConfig(**options, lora_alpha=3, use_rslora=True),
        "loha": lambda: LoHaConfig(**options, alpha=3),
        "lokr": lambda: LoKrConfig(**options, alpha=3),
    }[kind]()
    pipe.unet.add_adapter(config, "odd")
    for name, values in pipe.unet.named_parameters():
        if "odd" in name and "magnitude" not in name:
            values.data.normal_(std=0.3)
        if "magnitude" in name:
            values.data.mul_(1 + 0.2 * torch.rand_like(values))
    image = run(pipe)
    with attach(pipe) as attachment:
        assert relative(run(pipe), image) < 1e-4
        assert float(attachment.adapters[0].metadata.get(ERROR_KEY, 0)) < 1e-4
    detach(pipe)
    assert torch.equal(run(pipe), image)


def test_what_is_no_low_rank_update_is_named() -> None:
    from peft import LoraConfig

    pipe = tiny_pipeline("sd15")
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_out.0"], r=2, lora_bias=True), "biased")
    with pytest.raises(UsageError, match=r"adapter biased at unet.*to_out\.0 has a bias"):
        attach(pipe)
