"""Who may see what: the committed lists of held-out subjects and cells, and the training manifest.

A *cell* is a (subject, style) pair. ``unseen_subjects.json`` (64) and the unseen styles are kept
from the denoiser, the unseen subjects and ``vae_held_out.json`` (64 more) from the VAE in every
style, and ``judge_cells.json`` from the judge.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from loracomp.training.glyph.packages import ART_SETS, BASE_STYLES
from loracomp.training.glyph.subjects import Icon

Cell = tuple[str, str]
NAMED_STYLES = frozenset(art.style for art in ART_SETS)


@cache
def committed(name: str) -> Any:
    """The parsed JSON file ``name`` of this folder, unpacked where it ends in ``.xz``."""
    data = files(__name__).joinpath(name).read_bytes()
    return json.loads(lzma.decompress(data) if name.endswith(".xz") else data)


def unseen_subjects() -> frozenset[str]:
    """The 64 subjects that the denoiser never saw in any style."""
    return frozenset(committed("unseen_subjects.json"))


def vae_held_out() -> frozenset[str]:
    """64 further subjects that the VAE never saw in any style, to measure it by."""
    return frozenset(committed("vae_held_out.json"))


def judge_held_out() -> frozenset[Cell]:
    """Cells, filters included, whose pictures the judge never saw."""
    return frozenset((subject, style) for subject, style in committed("judge_cells.json"))


def vae_may_see(icon: Icon) -> bool:
    """True when the VAE trains on this icon: every named style, no unseen and no held-out subject.

    The unseen subjects are left out of the base's styles too, since the VAE paints filters over
    whatever it sees, and a filtered unseen subject is what composition is measured by.
    """
    return icon.style in NAMED_STYLES and icon.subject not in vae_held_out() | unseen_subjects()


def denoiser_may_see(icon: Icon) -> bool:
    """True when denoiser and text encoder train on this icon: base style, subject not unseen."""
    return icon.style in BASE_STYLES and icon.subject not in unseen_subjects()


def draw_vae_held_out(icons: list[Icon], count: int = 64, seed: int = 2) -> list[str]:
    """Subjects drawn in every art set, at random: how ``vae_held_out.json`` was made."""
    styles: dict[str, set[str]] = {}
    for icon in icons:
        if icon.style in NAMED_STYLES:
            styles.setdefault(icon.subject, set()).add(icon.style)
    full = sorted(s for s, have in styles.items() if len(have) == len(ART_SETS))
    pool = [s for s in full if s not in unseen_subjects()]
    chosen = np.random.default_rng(seed).choice(len(pool), count, replace=False)
    return sorted(pool[i] for i in chosen)
