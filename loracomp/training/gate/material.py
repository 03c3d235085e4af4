"""What a gate is trained on: the corpus's adapters, and latents and captions of scenes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import TrainingError
from loracomp.training.cache import to_latents
from loracomp.training.corpus.concepts import Concept
from loracomp.training.corpus.store import ADAPTERS, read_plan
from loracomp.training.gate.scenes import Director, Scene, rendered

CACHE = "scenes"
HELD_OUT = "validation"
"""Concepts of this split of the corpus are measured on; all others are trained on."""


@dataclass(frozen=True)
class Part:
    """The adapters of a corpus on one side of the split.

    Attributes:
        concepts: Their concepts.
        files: Files of the adapters of each concept, by its id.
    """

    concepts: tuple[Concept, ...]
    files: dict[str, tuple[Path, ...]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Scenes as the denoiser sees them.

    Attributes:
        latents: Shape (scenes, channels, height, width), float16.
        parts: Ids of the concepts in each.
        captions: What each is called.
    """

    latents: Tensor
    parts: tuple[tuple[str, ...], ...]
    captions: tuple[str, ...]


def read_corpus(folder: Path) -> tuple[Part, Part]:
    """Adapters to train on and to measure on; concepts without any finished adapter are left out.

    Raises:
        TrainingError: No corpus, or no adapters of two concepts at least to train on.
    """
    corpus = read_plan(folder)
    files: dict[str, list[Path]] = {}
    for planned in corpus.adapters:
        file = folder / ADAPTERS / f"{planned.name}.safetensors"
        if file.is_file():
            files.setdefault(planned.concept.id, []).append(file)
    sides = []
    for held in (False, True):
        chosen = tuple(c for c in corpus.concepts if c.id in files and (c.split == HELD_OUT) == held)
        sides.append(Part(chosen, {c.id: tuple(sorted(files[c.id])) for c in chosen}))
    if len(sides[0].concepts) < 2:
        raise TrainingError(
            f"{folder / ADAPTERS}: adapters of {len(sides[0].concepts)} concepts to train on; "
            "run `python -m loracomp.training.corpus all` first"
        )
    return sides[0], sides[1]


def opened(part: Part, base: str) -> dict[str, list[Adapter]]:
    """The adapters of a part by concept; raises :class:`TrainingError` for those of another base."""
    from loracomp.formats import load

    found: dict[str, list[Adapter]] = {}
    for concept, files in part.files.items():
        found[concept] = [load(file) for file in files]
        for file, adapter in zip(files, found[concept], strict=True):
            if adapter.base not in (base, "custom"):
                raise TrainingError(f"{file}: made for {adapter.base}, and the gate is for {base}")
    return found


def pictures(
    part: Part, folder: Path, artwork: Path, vae: Any, count: int, seed: int, tell: Callable[[str], None]
) -> Pictures:
    """Every concept by itself and ``count`` scenes of several, rendered once and kept in ``folder``.

    Args:
        part: The concepts.
        folder: The corpus.
        artwork: Folder of ``icons.json.xz``; needed where nothing is kept yet.
        vae: What makes latents of pictures; in the precision that it computes in.
        count: Scenes of several concepts.
        seed: Decides which.
        tell: Told what takes time.

    Raises:
        TrainingError: No artwork, or concepts that do not go together.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    ids = ",".join(concept.id + concept.trigger for concept in part.concepts)
    key = hashlib.sha256(f"{ids} {count} {seed}".encode()).hexdigest()[:12]
    path = folder / CACHE / f"{key}.safetensors"
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            table = json.loads(file.metadata()["scenes"])
            return Pictures(file.get_tensor("latents"), tuple(map(tuple, table[0])), tuple(table[1]))
    from loracomp.training.glyph.store import load

    director = Director(part.concepts, load(artwork), seed)
    scenes = [*director.alone(), *director.together(count)]
    tell(f"rendering {len(scenes)} pictures of {len(part.concepts)} concepts")
    found = _encoded(scenes, vae)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [list(map(list, found.parts)), list(found.captions)]
    save_file({"latents": found.latents}, path, {"scenes": json.dumps(table)})
    return found


@torch.no_grad()
def _encoded(scenes: Sequence[Scene], vae: Any) -> Pictures:
    pixels = rendered(scenes, os.cpu_count() or 1)
    like = next(vae.parameters())
    latents = [
        to_latents(vae, (some.to(like.device).to(like.dtype) / 127.5 - 1)).half().cpu()
        for some in pixels.split(64)
    ]
    parts, captions = [scene.parts for scene in scenes], [scene.shot.caption for scene in scenes]
    return Pictures(torch.cat(latents).contiguous(), tuple(parts), tuple(captions))
