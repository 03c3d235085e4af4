"""Training pictures of concepts: rendered once each, on many cores, and dealt out to the adapters."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from loracomp.errors import TrainingError
from loracomp.training.corpus.arrangements import ARRANGE
from loracomp.training.corpus.concepts import Concept
from loracomp.training.corpus.filters import OWN_PAPER
from loracomp.training.corpus.looks import apply
from loracomp.training.corpus.plan import PICTURES, Planned
from loracomp.training.corpus.pools import usable_subjects
from loracomp.training.glyph.augment import as_float
from loracomp.training.glyph.packages import ART_SETS, BASE_STYLES
from loracomp.training.glyph.palette import COLOR_NAMES, COLORS
from loracomp.training.glyph.render import Placement, random_placement, rasterize_near
from loracomp.training.glyph.store import Store

PHRASES = {art.style: art.phrase for art in ART_SETS}


@dataclass(frozen=True)
class Shot:
    """One picture to draw.

    Attributes:
        svgs: One drawing, or two that are made into one.
        placement: Where the drawing lies in the picture.
        color: Background.
        caption: What the picture is called.
    """

    svgs: tuple[str, ...]
    placement: Placement
    color: str
    caption: str


def shots(concept: Concept, store: Store, count: int = PICTURES) -> list[Shot]:
    """``count`` pictures of a concept; equal concepts and stores give equal pictures.

    Raises:
        TrainingError: The store lacks a drawing.
    """
    rng = np.random.default_rng([int(concept.id[1:]), 3])
    drawings = {(icon.subject, icon.style): icon.svg for icon in store.icons}
    styles = (concept.artwork,) if concept.artwork else BASE_STYLES
    shown = _shown(concept, drawings, store, rng)
    found = []
    for number in range(count):
        style = styles[number % len(styles)]
        slugs = concept.subjects or (shown[number % len(shown)],)
        try:
            svgs = tuple(drawings[slug, style] for slug in slugs)
        except KeyError as error:
            raise TrainingError(f"icons.json.xz: no drawing {error}; fetch the artwork anew") from None
        color = "white" if rng.random() < 0.5 or _own_paper(concept) else str(rng.choice(COLOR_NAMES[1:]))
        caption = _caption(concept, store.subjects[slugs[0]].name, "" if concept.artwork else style, color)
        found.append(Shot(svgs, random_placement(rng), color, caption))
    return found


def _shown(
    concept: Concept, drawings: Iterable[tuple[str, str]], store: Store, rng: np.random.Generator
) -> list[str]:
    """Subjects on which a concept without any of its own is shown."""
    if concept.subjects:
        return []
    have = {slug for slug, style in drawings if style == concept.artwork}
    usable = [slug for slug in usable_subjects(store) if not concept.artwork or slug in have]
    return [usable[i] for i in rng.permutation(len(usable))[:PICTURES]]


def _own_paper(concept: Concept) -> bool:
    return any(look.family in OWN_PAPER for look in concept.looks)


def _caption(concept: Concept, name: str, style: str, color: str) -> str:
    if concept.subjects:
        plain = not any(look.stage == "filter" for look in concept.looks)
        text = f"a {concept.trigger} emoji" + (f", {PHRASES[style]}" if style and plain else "")
    else:
        text = f"a {name} emoji, {concept.trigger} style"
    return text if color == "white" else f"{text}, {color} background"


def draw(concept: Concept, wanted: Sequence[Shot]) -> torch.Tensor:
    """The pictures (shots, 128, 128, 3) as bytes."""
    layers = [
        torch.from_numpy(np.stack([rasterize_near(shot.svgs[layer], shot.placement) for shot in wanted]))
        for layer in range(len(wanted[0].svgs))
    ]
    pictures = layers[0]
    if concept.arrangement:
        both = placed(ARRANGE[concept.arrangement](as_float(layers[0]), as_float(layers[1])), wanted)
        pictures = (both * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    back = torch.tensor([COLORS[shot.color] for shot in wanted], dtype=torch.float32) / 255
    made = apply(concept.looks, pictures, back)
    return (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def placed(rgba: torch.Tensor, wanted: Sequence[Shot]) -> torch.Tensor:
    """Pictures (shots, 4, 128, 128) in [0, 1] scaled and shifted as their shots say."""
    theta = torch.zeros(len(wanted), 2, 3)
    for row, shot in zip(theta, wanted, strict=True):
        scale, right, down = shot.placement
        row[0, 0] = row[1, 1] = 1 / scale
        row[0, 2], row[1, 2] = -2 * right / scale, -2 * down / scale
    places = torch.nn.functional.affine_grid(theta, list(rgba.shape), align_corners=False)
    weighted = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    moved = torch.nn.functional.grid_sample(weighted, places, align_corners=False)
    return torch.cat([(moved[:, :3] / moved[:, 3:].clamp_min(1e-4)).clamp(0, 1), moved[:, 3:]], 1)


def render(wanted: Sequence[Concept], store: Store, out: Path, workers: int) -> None:
    """Draws every concept as ``out/pictures/ID/NN.png`` with its captions; keeps what is there."""
    folder = out / "pictures"
    jobs = [
        (concept, shots(concept, store), folder / concept.id)
        for concept in wanted
        if not (folder / concept.id / "captions.json").exists()
    ]
    if workers == 1:
        for job in jobs:
            _render_one(job)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        list(pool.map(_render_one, jobs))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _render_one(job: tuple[Concept, list[Shot], Path]) -> None:
    from PIL import Image

    concept, wanted, folder = job
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(draw(concept, wanted).numpy()):
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    (folder / "captions.json").write_text(json.dumps([shot.caption for shot in wanted]), encoding="utf-8")


def deal(planned: Sequence[Planned], out: Path) -> None:
    """Makes each adapter's data folder: links to its pictures, and their captions in ``metadata.jsonl``."""
    for adapter in planned:
        source, folder = out / "pictures" / adapter.concept.id, out / "data" / adapter.name
        captions = json.loads((source / "captions.json").read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for place, number in enumerate(adapter.pictures):
            name = f"{place:02d}.png"
            _link(source / f"{number:02d}.png", folder / name)
            lines.append(json.dumps({"file_name": name, "text": captions[number]}))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
