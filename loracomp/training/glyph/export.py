"""Weights → a plain diffusers folder in fp16, with its measured default settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from loracomp.errors import TrainingError
from loracomp.training.glyph.denoiser import (
    DenoiserConfig,
    build_scheduler,
    build_text_encoder,
    build_unet,
)
from loracomp.training.glyph.vae import VaeConfig, build_vae

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DEFAULTS = "loracomp_defaults.json"
LARGEST = 38_000_000


def assemble(
    work: Path,
    tokenizer: Path,
    vae: VaeConfig | None = None,
    denoiser: DenoiserConfig | None = None,
) -> StableDiffusionPipeline:
    """The pipeline of ``work/{vae,unet,text_encoder}.safetensors`` and a tokenizer's folder."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    denoiser = denoiser or DenoiserConfig()
    parts: dict[str, Any] = {
        "vae": build_vae(vae or VaeConfig()),
        "unet": build_unet(denoiser),
        "text_encoder": build_text_encoder(denoiser),
    }
    for name, part in parts.items():
        part.load_state_dict(load_file(work / f"{name}.safetensors"))
    return StableDiffusionPipeline(
        **{name: part.half().eval() for name, part in parts.items()},
        tokenizer=CLIPTokenizer.from_pretrained(str(tokenizer)),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipe: StableDiffusionPipeline, defaults: dict[str, float], out: Path) -> int:
    """Write the folder, no file over 15 MB; its size in bytes.

    Raises TrainingError when the model is larger than glyph may be.
    """
    pipe.save_pretrained(str(out), safe_serialization=True, max_shard_size="15MB")
    _state_float32(out / "text_encoder" / "config.json")
    (out / DEFAULTS).write_text(json.dumps(defaults) + "\n", encoding="utf-8")
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    if size > LARGEST:
        raise TrainingError(f"{out} holds {size} bytes, {size - LARGEST} too many; shrink a part")
    return size


def _state_float32(path: Path) -> None:
    """Makes transformers open the text encoder in the dtype in which diffusers opens the rest by default."""
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
