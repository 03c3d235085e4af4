"""Cached latents and text states are found again only when nothing they depend on has changed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tiny import tiny_pipeline

from loracomp.training.cache import DiskCache, Encoded, encode, to_latents
from loracomp.training.dataset import read_dataset
from loracomp.training.pixels import load_pixels


def _encode(pipe: Any, folder: Path, cache: DiskCache, resolution: int = 32, variants: int = 1) -> Encoded:
    data = read_dataset(folder)
    captions = data.captions((), "x")
    return encode(pipe, data, captions, resolution=resolution, variants=variants, with_text=True, cache=cache)


def _files(cache: DiskCache) -> set[Path]:
    assert cache.folder is not None
    return set(cache.folder.rglob("*.safetensors"))


def test_values_are_those_of_the_models(folder: Path) -> None:
    pipe = tiny_pipeline("sd15")
    encoded = _encode(pipe, folder, DiskCache(None), variants=2)
    pixels = load_pixels(folder / "2.png", 32)
    with torch.no_grad():
        plain, mirrored = (to_latents(pipe.vae, view[None])[0] for view in (pixels, pixels.flip(-1)))
        text = pipe.encode_prompt("a circle of size 2, ink style", "cpu", 1, False)[0][0]
    torch.testing.assert_close(encoded.latents[2, 0], plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.latents[2, 1], mirrored, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.states["hidden"][encoded.caption_of[2]], text)
    assert encoded.captions[-1] == ""


def test_disk_gives_back_what_was_computed(folder: Path, tmp_path: Path) -> None:
    pipe, cache = tiny_pipeline("sd15"), DiskCache(tmp_path / "cache")
    first = _encode(pipe, folder, cache)
    files = _files(cache)
    assert len(files) == 4 + 5
    for part in (pipe.vae, pipe.text_encoder):
        part.forward = None  # a second look must not need the models
    pipe.vae.encode = None
    second = _encode(pipe, folder, cache)
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(first.states["hidden"], second.states["hidden"])
    assert _files(cache) == files


def test_every_dependency_has_its_own_entry(folder: Path, tmp_path: Path) -> None:
    pipe, cache = tiny_pipeline("sd15"), DiskCache(tmp_path / "cache")
    _encode(pipe, folder, cache)
    counts = [len(_files(cache))]
    _encode(pipe, folder, cache, resolution=16)
    counts.append(len(_files(cache)))
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight += 0.1
    _encode(pipe, folder, cache)
    counts.append(len(_files(cache)))
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).add_(0.1)
    (folder / "0.txt").write_text("new words")
    _encode(pipe, folder, cache)
    counts.append(len(_files(cache)))
    Image.new("RGB", (32, 32)).save(folder / "0.png")
    _encode(pipe, folder, cache)
    counts.append(len(_files(cache)))
    assert [b - a for a, b in pairwise(counts)] == [4, 4, 5, 1]


def test_damaged_and_unwritable_entries_are_made_anew(folder: Path, tmp_path: Path) -> None:
    pipe, cache = tiny_pipeline("sd15"), DiskCache(tmp_path / "cache")
    first = _encode(pipe, folder, cache)
    for file in _files(cache):
        file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(_encode(pipe, folder, cache).latents, first.latents)
    (tmp_path / "blocked").write_text("a file where the folder should be")
    assert torch.equal(_encode(pipe, folder, DiskCache(tmp_path / "blocked")).latents, first.latents)
