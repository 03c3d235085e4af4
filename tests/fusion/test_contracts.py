"""Every private spot of diffusers, accelerate and PEFT that the engine leans on, so that a release that moves
one fails here first, by name."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from tiny import run, tiny_pipeline
from torch import nn

from loracomp.fusion.branches import TEXTS, UNBATCHED
from loracomp.fusion.cache import chain
from loracomp.pipeline.layers import denoiser_of

KINDS = ("sd15", "sdxl", "sd3", "flux")


class Marker(ModelHook):
    """Adds to what goes in and multiplies what comes out."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (args[0] + 1,), kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output * 10


def test_the_registry_wraps_forward_and_tells_what_it_wraps() -> None:
    module = nn.Identity()
    plain = module.forward
    registry = HookRegistry.check_if_exists_or_initialize(module)
    assert vars(module)["_diffusers_hook"] is registry
    registry.register_hook(Marker(), "marker")
    hook = registry.get_hook("marker")
    assert hook is not None
    assert hook.fn_ref.forward == plain
    assert module(torch.zeros(1)) == 10
    hook.fn_ref.forward = lambda x: x - 1
    assert module(torch.zeros(1)) == 0
    hook.fn_ref.forward = plain
    registry.register_hook(Marker(), "second")
    assert module(torch.zeros(1)) == 200
    registry.remove_hook("marker", recurse=False)
    assert module(torch.zeros(1)) == 10
    registry.remove_hook("second", recurse=False)
    assert registry.hooks == {}
    assert module.forward == plain


def test_a_hook_may_stand_for_forward_itself() -> None:
    class Instead(ModelHook):
        def new_forward(self, module: nn.Module, x: Any) -> Any:
            return self.fn_ref.original_forward(x) + 5

    module = nn.Identity()
    HookRegistry.check_if_exists_or_initialize(module).register_hook(Instead(), "instead")
    assert module(torch.zeros(1)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_denoisers_name_their_arguments_as_we_read_them(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    name, model = denoiser_of(pipe)
    known = signature(type(model).forward).parameters
    assert "timestep" in known
    assert list(known)[1] == ("sample" if name == "unet" else "hidden_states")
    assert "encoder_hidden_states" in known
    seen: list[dict[str, Any]] = []
    handle = model.register_forward_pre_hook(lambda m, a, k: seen.append({"0": a, **k}), with_kwargs=True)
    run(pipe, num_inference_steps=1)
    handle.remove()
    given = {**seen[0], **(seen[0].get("added_cond_kwargs") or {})}
    expected = {
        "sd15": set(),
        "sdxl": {"text_embeds"},
        "sd3": {"pooled_projections"},
        "flux": {"pooled_projections"},
    }
    assert TEXTS.keys() & given.keys() == {"encoder_hidden_states"} | expected[kind]
    if kind == "flux":
        assert UNBATCHED & given.keys() == {"img_ids", "txt_ids"}
        assert given["img_ids"].shape[1] == 3
        assert int(given["img_ids"][:, 1:].max()) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_encode_prompt_returns_what_we_take_apart(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    both = "negative_prompt" in signature(pipe.encode_prompt).parameters
    assert both == (kind != "flux")
    prompts: dict[str, Any] = {"prompt": "a cat", "device": "cpu", "num_images_per_prompt": 2}
    if kind in ("sd3", "flux"):
        prompts |= {"prompt_2": None, "max_sequence_length": 16}
    if kind == "sd3":
        prompts["prompt_3"] = None
    if both:
        prompts["do_classifier_free_guidance"] = True
    result = pipe.encode_prompt(**prompts)
    axes = {"sd15": (3, 3), "sdxl": (3, 3, 2, 2), "sd3": (3, 3, 2, 2), "flux": (3, 2, 2)}[kind]
    assert tuple(part.ndim for part in result) == axes
    assert len(result[0]) == 2


def test_pipelines_tell_whether_they_guide_in_one_batch() -> None:
    for kind in KINDS:
        pipe = tiny_pipeline(kind)
        run(pipe, num_inference_steps=1, guidance_scale=3.0)
        assert bool(getattr(pipe, "do_classifier_free_guidance", False)) == (kind != "flux")
        if kind != "flux":
            run(pipe, num_inference_steps=1, guidance_scale=1.0)
            assert not pipe.do_classifier_free_guidance


def test_schedulers_count_and_pipelines_hand_on_views() -> None:
    assert hasattr(diffusers.EulerDiscreteScheduler(), "step_index")
    assert hasattr(diffusers.FlowMatchEulerDiscreteScheduler(), "begin_index")
    assert not hasattr(diffusers.DDIMScheduler(), "step_index")
    pipe = tiny_pipeline("sd15")
    seen: list[Any] = []
    handle = pipe.unet.register_forward_pre_hook(lambda m, a, k: seen.append(a[1]), with_kwargs=True)
    run(pipe, num_inference_steps=2)
    handle.remove()
    times = pipe.scheduler.timesteps
    assert seen[1].untyped_storage().data_ptr() == times.untyped_storage().data_ptr()
    assert seen[1].storage_offset() == 1


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_blocks_of_transformers_return_text_then_image(kind: str) -> None:
    from diffusers.hooks._helpers import TransformerBlockRegistry

    for _, block in chain(denoiser_of(tiny_pipeline(kind))[1]):
        try:
            told = TransformerBlockRegistry.get(type(block))
        except ValueError:
            told = None
        known = list(signature(type(block).forward).parameters)
        assert known[1:3] == ["hidden_states", "encoder_hidden_states"]
        if told is not None:
            assert (told.return_encoder_hidden_states_index, told.return_hidden_states_index) == (0, 1)


def test_group_offloading_is_found_where_we_look() -> None:
    from diffusers.hooks import apply_group_offloading

    model = nn.Sequential(nn.Linear(2, 2))
    cpu = torch.device("cpu")
    apply_group_offloading(model, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    hook = vars(model[0])["_diffusers_hook"].get_hook("group_offloading")
    assert hook is not None
    assert hook.group.stream is None


def test_accelerate_keeps_what_it_wraps_as_old_forward() -> None:
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    module = nn.Linear(2, 2)
    plain = module.forward
    cpu_offload_with_hook(module, torch.device("cpu"))
    assert module._old_forward == plain
    module._old_forward = lambda x: x * 0 + 7  # type: ignore[assignment]
    assert (module(torch.zeros(1, 2)) == 7).all()
    own = module._old_forward
    remove_hook_from_module(module)
    assert module.forward is own


def test_peft_has_the_attributes_that_we_read() -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert {"use_rslora", "use_dora", "lora_bias"} <= {field.name for field in fields(LoraConfig)}
    pipe = tiny_pipeline("sd15")
    options: dict[str, Any] = {"target_modules": ["to_q"], "r": 2}
    pipe.unet.add_adapter(LoraConfig(**options, use_dora=True), "one")
    layer: Any = next(m for m in pipe.unet.modules() if isinstance(m, BaseTunerLayer))
    assert vars(layer)["_disable_adapters"] is False
    assert layer.active_adapters == ["one"]
    assert not layer.merged
    assert not layer.disable_adapters
    assert type(layer.lora_variant["one"]).__name__.startswith("Dora")
    assert set(layer.scaling) == set(layer.lora_alpha) == set(layer.r) == set(layer.lora_A) == {"one"}
    assert layer.lora_magnitude_vector["one"].weight.shape == (layer.out_features,)
    assert layer.adapter_layer_names[0] == "lora_A"
    assert layer.get_delta_weight("one").shape == layer.weight.shape
    x = torch.randn(1, layer.in_features)
    layer.lora_B["one"].weight.data.normal_()
    layer._disable_adapters = True
    assert torch.equal(layer(x), layer.get_base_layer()(x))


def test_a_compiled_model_tells_what_is_inside() -> None:
    module = nn.Linear(2, 2)
    compiled: Any = torch.compile(module, backend="eager")
    assert compiled._orig_mod is module
    module.compile(backend="eager")
    assert module._compiled_call_impl is not None
