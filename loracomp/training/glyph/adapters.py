"""The folders that adapters are trained on: styles, unseen subjects, backgrounds, an accelerator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from loracomp.training.glyph.augment import as_float
from loracomp.training.glyph.captions import Shown, caption, prompt
from loracomp.training.glyph.examples import (
    PHRASES,
    Picture,
    style_pictures,
    style_subjects,
    subject_pictures,
    write_folder,
)
from loracomp.training.glyph.filters import FILTER_PHRASES, FILTERS, OWN_PAPER
from loracomp.training.glyph.packages import BASE_STYLES, UNSEEN_STYLES
from loracomp.training.glyph.palette import COLOR_NAMES, COLORS, on_background
from loracomp.training.glyph.render import rasterize
from loracomp.training.glyph.splits import Cell, denoiser_may_see, unseen_subjects
from loracomp.training.glyph.store import Store
from loracomp.training.glyph.subjects import Icon

PICTURES = 80
"""Pictures in each style's folder, each of another subject."""
ACCELERATOR_PICTURES = 600
SUBJECT_COLORS = ("white", *COLOR_NAMES[1:10])
BACKGROUNDS: tuple[str, ...] = ("blue", "green", "yellow", "pink")
"""Colors that have an adapter; its trigger is "COLOR backdrop", which the base was never told."""
STYLES: tuple[str, ...] = (*UNSEEN_STYLES, *FILTERS)


def write_adapters(out: Path, store: Store) -> None:
    """Write ``out/{styles,subjects,backgrounds}/NAME`` and ``out/accelerator``, each with a manifest."""
    table = {(icon.subject, icon.style): icon for icon in store.icons}
    for style in STYLES:
        write_folder(out / "styles" / style, style_folder(style, store, table))
    for slug in sorted(unseen_subjects()):
        name = store.subjects[slug].name
        pictures = subject_pictures(slug, SUBJECT_COLORS, table, name)
        write_folder(out / "subjects" / slug, pictures)
    for color in BACKGROUNDS:
        write_folder(out / "backgrounds" / f"{color}-background", background_folder(color, store, table))
    write_folder(out / "accelerator", accelerator_folder(store))


def accelerator_folder(store: Store, count: int = ACCELERATOR_PICTURES, seed: int = 11) -> list[Picture]:
    """What the base knows already: its styles take turns, each with subjects in random order.

    Half of the captions are measured prompts, half are worded as the base's training captions are.
    """
    rng = np.random.default_rng(seed)
    pools = {
        style: [icon for icon in store.icons if icon.style == style and denoiser_may_see(icon)]
        for style in BASE_STYLES
    }
    orders = {style: rng.permutation(len(pool)) for style, pool in pools.items()}
    pictures = []
    for i in range(min(count, len(BASE_STYLES) * min(map(len, pools.values())))):
        turn, style = i // len(BASE_STYLES), BASE_STYLES[i % len(BASE_STYLES)]
        icon = pools[style][orders[style][turn]]
        subject = store.subjects[icon.subject]
        color = "white" if rng.random() < 0.4 else str(rng.choice(COLOR_NAMES))
        text = prompt(subject.name, PHRASES[style], color)
        if turn % 2:
            text = caption(Shown(subject, PHRASES[style], color), rng)
        pictures.append(Picture(icon.subject, style, text, on_background(rasterize(icon.svg), color)))
    return pictures


def background_folder(color: str, store: Store, table: dict[Cell, Icon]) -> list[Picture]:
    """Subjects that the base knows, in its own styles in turn, on one color."""
    pictures = []
    for i, slug in enumerate(style_subjects(store.icons, store.subjects, PICTURES)):
        style = BASE_STYLES[i % len(BASE_STYLES)]
        pixels = on_background(rasterize(table[slug, style].svg), color)
        caption = f"a {store.subjects[slug].name} emoji, {PHRASES[style]}, {color} backdrop"
        pictures.append(Picture(slug, style, caption, pixels))
    return pictures


def style_folder(style: str, store: Store, table: dict[Cell, Icon]) -> list[Picture]:
    """Subjects that the base knows in one unseen style or filter; a third on named colors."""
    chosen = style_subjects(store.icons, store.subjects, PICTURES)
    if style in FILTERS:
        return [_filtered(style, i, slug, store, table) for i, slug in enumerate(chosen)]
    pictures = style_pictures(style, chosen, table, store.subjects)
    for i in range(0, len(pictures), 3):
        color = _color(i)
        pixels = on_background(rasterize(table[chosen[i], style].svg), color)
        caption = f"{pictures[i].caption}, {color} background"
        pictures[i] = replace(pictures[i], pixels=pixels, caption=caption)
    return pictures


def _filtered(style: str, i: int, slug: str, store: Store, table: dict[Cell, Icon]) -> Picture:
    """One base-style icon through a filter; the base styles take turns."""
    color = _color(i) if i % 3 == 0 and style not in OWN_PAPER else "white"
    rgba = rasterize(table[slug, BASE_STYLES[i % len(BASE_STYLES)]].svg)
    back = torch.tensor([COLORS[color]], dtype=torch.float32) / 255
    made = FILTERS[style](as_float(torch.from_numpy(rgba.copy())[None]), back)[0]
    pixels = (made.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    caption = f"a {store.subjects[slug].name} emoji, {FILTER_PHRASES[style]}"
    if color != "white":
        caption += f", {color} background"
    return Picture(slug, style, caption, pixels)


def _color(i: int) -> str:
    return COLOR_NAMES[1 + i // 3 % (len(COLOR_NAMES) - 1)]
