"""What the frozen parts of a base make of the data: latents and text states, computed once.

Kept in memory for the run, and on disk for the next one under keys that hold everything the value
depends on: the picture's or caption's content, the resolution, the preprocessing, the model's weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.training.dataset import Dataset
from loracomp.training.pixels import PREPROCESSING, load_pixels
from loracomp.training.wiring import encode_captions

SAMPLED = 4096


@dataclass(frozen=True)
class Encoded:
    """Training data as the denoiser sees it.

    Attributes:
        latents: (pictures, variants, channels, height, width) float32; variant 1 is mirrored.
        states: Text states, leading axis the distinct captions; the last caption is empty.
        caption_of: (pictures,) index of each picture's caption in ``states``.
        captions: The distinct captions, the empty one last.
    """

    latents: Tensor
    states: Mapping[str, Tensor]
    caption_of: Tensor
    captions: tuple[str, ...]


class DiskCache:
    """Tables of tensors under content keys in a folder; a damaged or unwritable entry is no entry."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors under ``key``, made and stored if they are not there."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        if self.folder is None:
            return make()
        path = self.folder / key[:2] / f"{key}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            value = make()
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in value.items()}, part)
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return value


def default_cache() -> DiskCache:
    """The user's cache: ``$LORACOMP_CACHE``, else ``~/.cache/loracomp``; ``LORACOMP_CACHE=`` turns it off."""
    place = os.environ.get("LORACOMP_CACHE")
    if place is None:
        return DiskCache(Path.home() / ".cache" / "loracomp" / "training")
    return DiskCache(Path(place) / "training" if place else None)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and at most 4,096 evenly spaced values of each tensor.

    Tells two sets of weights apart in a fraction of the time that reading gigabytes would take.
    """
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().contiguous()
        state.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return state.hexdigest()


def encode(
    pipe: Any,
    data: Dataset,
    captions: Sequence[str],
    *,
    resolution: int,
    variants: int,
    with_text: bool,
    cache: DiskCache,
) -> Encoded:
    """Latents of the pictures and, unless the text encoders train too, states of the captions.

    Args:
        pipe: The base.
        data: The pictures.
        captions: One caption per picture.
        resolution: Side in pixels.
        variants: 1, or 2 with the mirrored pictures.
        with_text: Whether to encode the captions.
        cache: Where to look first.
    """
    distinct = tuple(dict.fromkeys(text for text in captions if text))
    table = {text: index for index, text in enumerate((*distinct, ""))}
    return Encoded(
        latents=_latents(pipe, data, resolution, variants, cache),
        states=_states(pipe, tuple(table), cache) if with_text else {},
        caption_of=torch.tensor([table[text] for text in captions]),
        captions=tuple(table),
    )


@torch.no_grad()
def _latents(pipe: Any, data: Dataset, resolution: int, variants: int, cache: DiskCache) -> Tensor:
    vae = pipe.vae
    model, dtype = fingerprint(vae), vae.dtype
    if dtype != torch.float32:
        vae.to(torch.float32)  # half precision overflows in SDXL's VAE and blurs small ones

    rows = []
    for picture in data.pictures:

        def make(path: Path = picture.path) -> dict[str, Tensor]:
            pixels = load_pixels(path, resolution)
            views = torch.stack([pixels, pixels.flip(-1)][:variants]).to(vae.device)
            return {"latents": to_latents(vae, views).cpu()}

        key = _key(picture.digest, str(resolution), str(variants), PREPROCESSING, model)
        rows.append(cache.get(key, make)["latents"])
    if dtype != torch.float32:
        vae.to(dtype)
    return torch.stack(rows)


def to_latents(vae: Any, pixels: Tensor) -> Tensor:
    """The mode of the VAE's posterior, shifted and scaled as the denoiser expects it."""
    latents = vae.encode(pixels).latent_dist.mode()
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def _states(pipe: Any, captions: Sequence[str], cache: DiskCache) -> dict[str, Tensor]:
    encoders = [part for name, part in sorted(pipe.components.items()) if name.startswith("text_encoder")]
    model = _key(*(fingerprint(part) for part in encoders if part is not None))
    rows = []
    for text in captions:

        def make(caption: str = text) -> dict[str, Tensor]:
            states = encode_captions(pipe, [caption], pipe.device)
            return {name: state.cpu() for name, state in states.items()}

        rows.append(cache.get(_key(text, model), make))
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
