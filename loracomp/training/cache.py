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
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from loracomp.training.dataset import Dataset, Picture
from loracomp.training.pixels import PREPROCESSING, load_pixels
from loracomp.training.wiring import encode_captions

SAMPLED = 4096
Item = TypeVar("Item")


@dataclass(frozen=True)
class Encoded:
    """Training data as the denoiser sees it; of one folder, or of several in a row.

    Attributes:
        latents: (distinct pictures, variants, channels, height, width) float32; variant 1 is mirrored.
        latent_of: (pictures,) index of each picture in ``latents``.
        states: Text states, leading axis the distinct captions; the last caption is empty.
        caption_of: (pictures,) index of each picture's caption in ``states``.
        captions: The distinct captions, the empty one last.
    """

    latents: Tensor
    latent_of: Tensor
    states: Mapping[str, Tensor]
    caption_of: Tensor
    captions: tuple[str, ...]


class DiskCache:
    """Tables of tensors under content keys in a folder; a damaged or unwritable entry is no entry."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def find(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under ``key``; None where they are not there or cannot be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.folder is None:
            return None
        try:
            return load_file(self._path(self.folder, key))
        except (OSError, SafetensorError):
            return None

    def keep(self, key: str, value: Mapping[str, Tensor]) -> None:
        """Stores tensors under ``key`` where there is a folder that can be written."""
        from safetensors.torch import save_file

        if self.folder is None:
            return
        path = self._path(self.folder, key)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in value.items()}, part)
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"


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
    return encode_pictures(
        pipe,
        data.pictures,
        captions,
        resolution=resolution,
        variants=variants,
        with_text=with_text,
        cache=cache,
    )


def encode_pictures(
    pipe: Any,
    pictures: Sequence[Picture],
    captions: Sequence[str],
    *,
    resolution: int,
    variants: int,
    with_text: bool,
    cache: DiskCache,
    at_once: int = 1,
) -> Encoded:
    """As :func:`encode`, for pictures of any folders; equal pictures and captions are encoded once.

    ``at_once`` is the number of pictures, and of captions, in one pass of the models.
    """
    distinct = tuple(dict.fromkeys(text for text in captions if text))
    table = {text: index for index, text in enumerate((*distinct, ""))}
    files = {picture.digest: picture.path for picture in pictures}
    place = {digest: index for index, digest in enumerate(files)}
    return Encoded(
        latents=_latents(pipe, files, resolution, variants, cache, at_once),
        latent_of=torch.tensor([place[picture.digest] for picture in pictures]),
        states=_states(pipe, tuple(table), cache, at_once) if with_text else {},
        caption_of=torch.tensor([table[text] for text in captions]),
        captions=tuple(table),
    )


@torch.no_grad()
def _latents(
    pipe: Any, files: Mapping[str, Path], resolution: int, variants: int, cache: DiskCache, at_once: int
) -> Tensor:
    """Latents of the files, by digest, in order."""
    vae = pipe.vae
    model, dtype = fingerprint(vae), vae.dtype
    if dtype != torch.float32:
        vae.to(torch.float32)  # half precision overflows in SDXL's VAE and blurs small ones

    def make(paths: list[Path]) -> dict[str, Tensor]:
        pixels = torch.stack([load_pixels(path, resolution) for path in paths])
        views = torch.stack([pixels, pixels.flip(-1)][:variants], 1)
        latents = to_latents(vae, views.flatten(0, 1).to(vae.device)).cpu()
        return {"latents": latents.unflatten(0, views.shape[:2])}

    keys = {
        _key(digest, str(resolution), str(variants), PREPROCESSING, model): path
        for digest, path in files.items()
    }
    rows = _looked_up(keys, make, cache, at_once)
    if dtype != torch.float32:
        vae.to(dtype)
    return torch.stack([row["latents"] for row in rows])


def _looked_up(
    wanted: Mapping[str, Item],
    make: Callable[[list[Item]], Mapping[str, Tensor]],
    cache: DiskCache,
    at_once: int,
) -> list[dict[str, Tensor]]:
    """What is wanted, by key: from the cache, or made ``at_once`` at a time with a leading axis and kept."""
    found = {key: cache.find(key) for key in wanted}
    missing = [key for key, value in found.items() if value is None]
    for start in range(0, len(missing), at_once):
        keys = missing[start : start + at_once]
        made = make([wanted[key] for key in keys])
        for index, key in enumerate(keys):
            value = {name: tensor[index].clone() for name, tensor in made.items()}
            cache.keep(key, value)
            found[key] = value
    return [value for value in found.values() if value is not None]


def to_latents(vae: Any, pixels: Tensor) -> Tensor:
    """The mode of the VAE's posterior, shifted and scaled as the denoiser expects it."""
    latents = vae.encode(pixels).latent_dist.mode()
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def _states(pipe: Any, captions: Sequence[str], cache: DiskCache, at_once: int) -> dict[str, Tensor]:
    encoders = [part for name, part in sorted(pipe.components.items()) if name.startswith("text_encoder")]
    model = _key(*(fingerprint(part) for part in encoders if part is not None))

    def make(texts: list[str]) -> dict[str, Tensor]:
        states = encode_captions(pipe, texts, pipe.device)
        return {name: state[:, None].cpu() for name, state in states.items()}

    rows = _looked_up({_key(text, model): text for text in captions}, make, cache, at_once)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
