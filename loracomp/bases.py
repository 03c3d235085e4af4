"""Everything that differs between base models: one row each, and their layers as committed tables.

A new base is one :class:`Base` row and one table made by ``python -m loracomp.training.tables``.
Code elsewhere asks a row for a fact; it never asks a row for its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

from loracomp.errors import UnknownNameError

Prediction = Literal["epsilon", "v_prediction", "flow"]
Shape = tuple[int, ...]

UNET_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
)
DIT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True)
class Base:
    """Facts about a family of base models.

    Attributes:
        name: What users type after ``--base``.
        title: What people call it.
        source: Asset folder or hub id that the name stands for.
        pipeline: Class name of its text-to-image pipeline in diffusers.
        denoiser: Pipeline attribute of the denoiser, ``unet`` or ``transformer``.
        text_encoders: Pipeline attributes of the text encoders, in order.
        prediction: What the denoiser predicts.
        latent_channels: Channels of the VAE's latent.
        resolution: Side of its native images in pixels.
        steps: Default number of denoising steps.
        guidance: Default guidance scale.
        targets: Module suffixes that a LoRA trains by default.
        architecture: ``modelspec.architecture`` of its LoRAs, before ``/lora``.
        kohya_version: ``ss_base_model_version`` as kohya's trainer writes it.
        kohya_prefixes: Prefix of each component's keys in kohya's dialect.
        kohya_sgm: Whether kohya names UNet blocks as the original code does (input_blocks, …).
        checkpoint_key: Tensor that only its single-file checkpoints have, without any prefix.
        dialect: Dialect that most tools read at the right strength (``kohya`` or ``diffusers``).
        caption: How captions that it was trained on name a subject, for example prompts.
    """

    name: str
    title: str
    source: str
    pipeline: str
    denoiser: str
    text_encoders: tuple[str, ...]
    prediction: Prediction
    latent_channels: int
    resolution: int
    steps: int
    guidance: float
    targets: tuple[str, ...]
    architecture: str
    kohya_version: str
    kohya_prefixes: Mapping[str, str]
    checkpoint_key: str
    kohya_sgm: bool = False
    dialect: Literal["kohya", "diffusers"] = "kohya"
    caption: str = "{}"


_ONE_CLIP = {"unet": "lora_unet", "text_encoder": "lora_te"}
_ROWS = (
    Base(
        name="glyph",
        title="glyph (embedded, 128 px)",
        source="assets/glyph",
        pipeline="StableDiffusionPipeline",
        denoiser="unet",
        text_encoders=("text_encoder",),
        prediction="v_prediction",
        latent_channels=12,
        resolution=128,
        steps=25,
        guidance=4.0,
        targets=(*UNET_TARGETS, "conv1", "conv2"),
        architecture="glyph",
        checkpoint_key="",
        kohya_version="glyph",
        kohya_prefixes=_ONE_CLIP,
        caption="{} emoji",
    ),
    Base(
        name="sd15",
        title="Stable Diffusion 1.5",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        pipeline="StableDiffusionPipeline",
        denoiser="unet",
        text_encoders=("text_encoder",),
        prediction="epsilon",
        latent_channels=4,
        resolution=512,
        steps=30,
        guidance=7.5,
        targets=UNET_TARGETS,
        architecture="stable-diffusion-v1",
        checkpoint_key="cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        kohya_version="sd_v1",
        kohya_prefixes=_ONE_CLIP,
    ),
    Base(
        name="sdxl",
        title="Stable Diffusion XL",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        pipeline="StableDiffusionXLPipeline",
        denoiser="unet",
        text_encoders=("text_encoder", "text_encoder_2"),
        prediction="epsilon",
        latent_channels=4,
        resolution=1024,
        steps=30,
        guidance=6.0,
        targets=UNET_TARGETS,
        architecture="stable-diffusion-xl-v1-base",
        checkpoint_key="conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
        kohya_version="sdxl_base_v1-0",
        kohya_prefixes={
            "unet": "lora_unet",
            "text_encoder": "lora_te1",
            "text_encoder_2": "lora_te2",
        },
        kohya_sgm=True,
    ),
    Base(
        name="sd3",
        title="Stable Diffusion 3 medium",
        source="stabilityai/stable-diffusion-3-medium-diffusers",
        pipeline="StableDiffusion3Pipeline",
        denoiser="transformer",
        text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        prediction="flow",
        latent_channels=16,
        resolution=1024,
        steps=28,
        guidance=7.0,
        targets=(*DIT_TARGETS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        architecture="stable-diffusion-3-medium",
        checkpoint_key="joint_blocks.0.context_block.adaLN_modulation.1.bias",
        kohya_version="sd3_m",
        kohya_prefixes={
            "transformer": "lora_unet",
            "text_encoder": "lora_te1",
            "text_encoder_2": "lora_te2",
            "text_encoder_3": "lora_te3",
        },
        dialect="diffusers",
    ),
    Base(
        name="flux",
        title="FLUX.1",
        source="black-forest-labs/FLUX.1-dev",
        pipeline="FluxPipeline",
        denoiser="transformer",
        text_encoders=("text_encoder", "text_encoder_2"),
        prediction="flow",
        latent_channels=16,
        resolution=1024,
        steps=28,
        guidance=3.5,
        targets=(*DIT_TARGETS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        architecture="flux-1-dev",
        checkpoint_key="double_blocks.0.img_attn.norm.key_norm.scale",
        kohya_version="flux1",
        kohya_prefixes={
            "transformer": "lora_unet",
            "text_encoder": "lora_te1",
            "text_encoder_2": "lora_te3",
        },
        dialect="diffusers",
    ),
)
BASES: Mapping[str, Base] = MappingProxyType({row.name: row for row in _ROWS})


def get_base(name: str) -> Base:
    """The row called ``name``; raises :class:`UnknownNameError` with near names."""
    if name not in BASES:
        raise UnknownNameError("base", name, BASES)
    return BASES[name]


@cache
def modules(name: str) -> Mapping[str, Shape]:
    """Weight shapes of all linear and convolution layers of a base, by module path.

    Paths begin with the pipeline component. Raises :class:`UnknownNameError`.
    """
    get_base(name)
    text = (files("loracomp") / "assets" / "modules" / f"{name}.json").read_text()
    return MappingProxyType({path: tuple(shape) for path, shape in json.loads(text).items()})


def fit(shapes: Mapping[str, Shape], name: str) -> float:
    """Share of layers, in [0, 1], that base ``name`` has under the same path and shape."""
    table = modules(name)
    hits = sum(table.get(path) == shape for path, shape in shapes.items())
    return hits / len(shapes) if shapes else 0.0


def detect_base(shapes: Mapping[str, Shape]) -> tuple[str, float]:
    """The base that most of the layers fit, and the share in [0, 1] that does (0: none fits)."""
    scores = {name: fit(shapes, name) for name in BASES}
    best = max(scores, key=lambda name: scores[name])
    return best, scores[best]


def classic_path(path: str) -> str:
    """The path with ``text_model`` in front of a CLIP encoder's layers, which newer releases leave out."""
    component, _, rest = path.partition(".")
    if component.startswith("text_encoder") and rest.startswith("encoder.layers."):
        return f"{component}.text_model.{rest}"
    return path
