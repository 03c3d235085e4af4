"""Other pipelines, offloading and quantised weights: live adapters against the same ones in the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from predictions import relative
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import Program
from loracomp.pipeline import attach, denoiser_of, detach, layers_of

SUFFIXES = ("to_q", "to_v", "ff.net.2", "conv1", "q_proj")
CPU = torch.device("cpu")
PICTURE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MASK = (PICTURE[:, :1] > 0.5).float()


def adapters(pipe: Any, count: int = 2) -> list[Adapter]:
    shapes = {path: shape for path, shape in layer_table(pipe).items() if "controlnet" not in path}
    return [random_adapter(shapes, SUFFIXES, rank=2 + n, seed=n, size=0.05) for n in range(count)]


@contextmanager
def folded(pipe: Any, chosen: list[Adapter], weights: list[float]) -> Iterator[None]:
    """The pipeline with the sum of the updates added to its weights."""
    layers: dict[str, Any] = {**layers_of(pipe)}
    pristine = {path: layers[path].weight.detach().clone() for adapter in chosen for path in adapter.layers}
    for adapter, weight in zip(chosen, weights, strict=True):
        for path, update in adapter.layers.items():
            layers[path].weight.data += weight * update.delta(torch.float64).float()
    yield
    for path, values in pristine.items():
        layers[path].weight.data.copy_(values)


def variant(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline of diffusers made of the parts of a tiny one, and what its call takes besides."""
    kinds = {
        "StableDiffusionXL": "sdxl",
        "StableDiffusion3": "sd3",
        "Flux": "flux",
        "StableDiffusion": "sd15",
    }
    kind = next(kind for prefix, kind in kinds.items() if name.startswith(prefix))
    whole = tiny_pipeline(kind)
    extra: dict[str, Any] = {}
    if kind == "sd15":
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts = {
        key: part for key, part in whole.components.items() if part is not None and key not in extra
    } | extra
    call: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}
    if "ControlNet" in name:
        torch.manual_seed(1)
        parts["controlnet"] = diffusers.ControlNetModel.from_unet(
            whole.unet, conditioning_embedding_out_channels=(16, 32)
        ).eval()
        for values in parts["controlnet"].parameters():
            values.data += 0.02 * torch.randn_like(values)
        call |= {"image": PICTURE, "height": 32, "width": 32}
    if "Img2Img" in name or "Inpaint" in name:
        call |= {"image": PICTURE, "strength": 0.75}
    if "Inpaint" in name:
        call |= {"mask_image": MASK, "height": 32, "width": 32}
    if kind in ("sd3", "flux"):
        call |= {"max_sequence_length": 16, "height": 32, "width": 32}
    pipe = getattr(diffusers, name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


VARIANTS = [
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
]


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_every_pipeline_runs_unmodified(name: str) -> None:
    pipe, call = variant(name)
    chosen = adapters(pipe)

    def draw() -> Tensor:
        torch.manual_seed(0)
        return pipe("a cat", generator=torch.Generator().manual_seed(0), **call).images

    base = draw()
    with attach(pipe, chosen, weights=[0.8, -0.5]) as attachment:
        ours = draw()
        attachment.set_program("composite", [1.0, 0.0])
        composite = draw()
    with folded(pipe, chosen, [0.8, -0.5]):
        assert relative(ours, draw()) < 1e-5
    assert relative(ours, base) > 1e-5
    assert relative(composite, base) > 1e-6
    assert torch.equal(draw(), base)


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
@pytest.mark.parametrize("first", ["attach", "offload"])
def test_group_offloading_takes_the_factors_along(pipe: Any, level: str, first: str) -> None:
    kind = next(k for k in ("sd15", "sdxl", "sd3", "flux") if type(pipe) is type(tiny_pipeline(k)))
    own = tiny_pipeline(kind)
    chosen = adapters(own)
    with attach(own, chosen):
        plain = run(own)
    model: Any = denoiser_of(own)[1]
    options = {"onload_device": CPU, "offload_device": CPU, "offload_type": level}
    options |= {"num_blocks_per_group": 1} if level == "block_level" else {}
    if first == "offload":
        model.enable_group_offload(**options)
    attachment = attach(own, chosen)
    if first == "attach":
        model.enable_group_offload(**options)
    assert relative(run(own), plain) < 1e-6
    path, (_, update) = next((p, u) for p, u in attachment.updates.items() if not p.startswith("text"))
    held = {id(tensor) for part in model.modules() for tensor in _moved(part)}
    assert {id(update.down), id(update.up)} <= held, path
    detach(own)
    assert relative(run(own), plain) > 1e-5


def _moved(module: nn.Module) -> Iterator[Tensor]:
    """What the offloading of one module moves."""
    registry = vars(module).get("_diffusers_hook")
    hook = registry.get_hook("group_offloading") if registry else None
    if hook is not None:
        for part in hook.group.modules:
            yield from part.buffers()
        yield from hook.group.buffers


def test_offloading_in_streams_has_to_come_after() -> None:
    pipe = tiny_pipeline("sd15")
    pipe.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    hook = next(
        h
        for m in pipe.unet.modules()
        if (r := vars(m).get("_diffusers_hook"))
        for h in r.hooks.values()
        if hasattr(h, "group")
    )
    hook.group.stream = object()
    with pytest.raises(UsageError, match=r"unet is offloaded .* attach first"):
        attach(pipe, adapters(pipe))


@pytest.mark.parametrize("first", ["attach", "offload"])
def test_model_offloading_may_come_and_go(first: str) -> None:
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    pipe = tiny_pipeline("sd15")
    chosen = adapters(pipe)
    base = run(pipe)
    with attach(pipe, chosen, "composite"):
        plain = run(pipe)
    models = [pipe.unet, pipe.text_encoder]
    if first == "offload":
        for model in models:
            cpu_offload_with_hook(model, CPU)
    attach(pipe, chosen, "composite")
    for _ in range(2):
        # What enable_model_cpu_offload does after every image.
        for model in models:
            remove_hook_from_module(model, recurse=True)
            cpu_offload_with_hook(model, CPU)
        assert torch.equal(run(pipe), plain)
    detach(pipe)
    assert hasattr(pipe.unet, "_hf_hook")
    assert torch.equal(run(pipe), base)
    for model in models:
        remove_hook_from_module(model, recurse=True)
    assert torch.equal(run(pipe), base)


def test_moving_the_pipeline_moves_the_factors() -> None:
    pipe = tiny_pipeline("sd15")
    with attach(pipe, adapters(pipe)) as attachment:
        run(pipe)
        pipe.to(torch.bfloat16)
        assert {update.down.dtype for _, update in attachment.updates.values()} == {torch.bfloat16}
        assert run(pipe).isfinite().all()
        pipe.unet.to(torch.float8_e4m3fn)
        name, (module, update) = next(iter(attachment.updates.items()))
        assert module.weight.dtype == torch.float8_e4m3fn or name.startswith("text")
        assert update.down.dtype == torch.bfloat16


def test_layerwise_casting_leaves_the_factors_alone() -> None:
    pipe = tiny_pipeline("sd15")
    chosen = adapters(pipe)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    base = run(pipe)
    with attach(pipe, chosen) as attachment:
        first = run(pipe)
        assert torch.equal(run(pipe), first)
        for path, (_, update) in attachment.updates.items():
            assert update.down.dtype in (torch.float32, torch.bfloat16), path
    assert relative(first, base) > 1e-5
    assert torch.equal(run(pipe), base)


class Int8(nn.Module):
    """A linear layer that keeps its weight in eight bits, as quantised models do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((layer.weight.detach() / self.scale).round().to(torch.int8), False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale.to(x), self.bias)


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_a_base_in_eight_bits_calculates_in_the_dtype_of_its_activations(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    name, model = denoiser_of(pipe)
    chosen = adapters(pipe, 1)
    chosen = [Adapter({p: v for p, v in chosen[0].layers.items() if p.startswith(name)}, "custom")]
    layers = {path: layer for path, layer in model.named_modules() if type(layer) is nn.Linear}
    for path, layer in layers.items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Int8(layer))
    base = run(pipe)
    with attach(pipe, chosen) as attachment:
        assert {update.down.dtype for _, update in attachment.updates.values()} == {torch.float32}
        live = run(pipe)
        attachment.set_program("merge", [0.0])
        assert torch.equal(run(pipe), base)
    for path, layer in layers.items():
        parent, _, leaf = path.rpartition(".")
        eight: Any = model.get_submodule(path)
        layer.weight.data = eight.weight * eight.scale
        setattr(model.get_submodule(parent), leaf, layer)
    with attach(pipe, chosen):
        assert relative(run(pipe), live) < 1e-5
    assert relative(live, base) > 1e-5


def test_xformers_attention_gives_the_same(pipe: Any) -> None:
    pytest.importorskip("xformers")
    if not hasattr(pipe, "unet") or not torch.cuda.is_available():
        pytest.skip("xformers serves UNets, on a GPU")
    pipe.to("cuda")
    with attach(pipe, adapters(pipe), Program("composite")):
        plain = run(pipe).cpu()
        pipe.enable_xformers_memory_efficient_attention()
        with_xformers = run(pipe).cpu()
    pipe.disable_xformers_memory_efficient_attention()
    pipe.to("cpu")
    assert relative(with_xformers, plain) < 1e-3
