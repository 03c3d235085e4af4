"""Folders of captioned pictures: the small committed examples and the larger adapter data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from loracomp.training.glyph.packages import ART_SETS, BASE_STYLES, UNSEEN_STYLES
from loracomp.training.glyph.palette import on_background
from loracomp.training.glyph.render import rasterize
from loracomp.training.glyph.splits import unseen_subjects, vae_held_out
from loracomp.training.glyph.subjects import Icon, Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXAMPLE_SUBJECTS = ("watermelon", "bicycle", "violin")
PHRASES: dict[str, str] = {art.style: art.phrase for art in ART_SETS}
_PLAIN_GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")


@dataclass(frozen=True)
class Picture:
    """One training picture, (128, 128, 3) RGB 0 to 255, with its caption and what it shows."""

    subject: str
    style: str
    caption: str
    pixels: NDArray[np.uint8]


def style_subjects(icons: list[Icon], subjects: dict[str, Subject], count: int) -> list[str]:
    """``count`` subjects for style adapters: drawn in every set and reserved by no split."""
    have: dict[str, set[str]] = {}
    for icon in icons:
        if icon.style in PHRASES:
            have.setdefault(icon.subject, set()).add(icon.style)
    reserved = unseen_subjects() | vae_held_out()
    pool = [
        slug
        for slug in sorted(subjects)
        if subjects[slug].group in _PLAIN_GROUPS
        and len(have.get(slug, ())) == len(ART_SETS)
        and slug not in reserved
    ]
    chosen = np.random.default_rng(7).permutation(len(pool))[:count]
    return [pool[i] for i in chosen]


def style_pictures(
    style: str, chosen: list[str], icons: dict[tuple[str, str], Icon], subjects: dict[str, Subject]
) -> list[Picture]:
    """One picture of each chosen subject in ``style`` on white."""
    out = []
    for slug in chosen:
        caption = f"a {subjects[slug].name} emoji, {PHRASES[style]}"
        pixels = on_background(rasterize(icons[slug, style].svg), "white")
        out.append(Picture(slug, style, caption, pixels))
    return out


def subject_pictures(
    slug: str, colors: tuple[str, ...], icons: dict[tuple[str, str], Icon], name: str
) -> list[Picture]:
    """A subject in the base styles only, on each background color."""
    out = []
    for style in BASE_STYLES:
        if (slug, style) not in icons:
            continue
        rgba = rasterize(icons[slug, style].svg)
        for color in colors:
            caption = f"a {name} emoji, {PHRASES[style]}"
            if color != "white":
                caption += f", {color} background"
            out.append(Picture(slug, style, caption, on_background(rgba, color)))
    return out


def write_folder(folder: Path, pictures: list[Picture], palette: int | None = None) -> None:
    """Write NNN-subject.png with a .txt caption each, and manifest.json (file, subject, style).

    ``palette`` limits each PNG to that many colors, to keep committed examples small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, picture in enumerate(pictures):
        stem = f"{i:03d}-{picture.subject}"
        image = Image.fromarray(picture.pixels)
        if palette:
            image = image.quantize(palette, dither=Image.Dither.NONE)
        image.save(folder / f"{stem}.png", optimize=True)
        (folder / f"{stem}.txt").write_text(picture.caption + "\n", encoding="utf-8")
        rows.append({"file": f"{stem}.png", "subject": picture.subject, "style": picture.style})
    (folder / "manifest.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def write_examples(out: Path, icons: list[Icon], subjects: dict[str, Subject]) -> None:
    """The committed folders ``styles/{mono,fluent,blobs}`` and ``subjects/{watermelon,…}``."""
    table = {(icon.subject, icon.style): icon for icon in icons}
    chosen = style_subjects(icons, subjects, 24)
    for style in UNSEEN_STYLES:
        pictures = style_pictures(style, chosen, table, subjects)
        write_folder(out / "styles" / style, pictures, palette=48)
    for slug in EXAMPLE_SUBJECTS:
        pictures = subject_pictures(slug, ("white", "blue"), table, subjects[slug].name)
        write_folder(out / "subjects" / slug, pictures, palette=48)
