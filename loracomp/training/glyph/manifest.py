"""The training manifest: every (subject, style) that each part of glyph and its judge saw."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path

from loracomp.training.glyph.cells import ALL_STYLES, judge_may_see
from loracomp.training.glyph.packages import EXTRA_SETS
from loracomp.training.glyph.splits import denoiser_may_see, judge_held_out, vae_may_see
from loracomp.training.glyph.store import Store
from loracomp.training.glyph.subjects import Icon

PARTS: dict[str, Callable[[Icon], bool]] = {"vae": vae_may_see, "denoiser": denoiser_may_see}


def manifest(store: Store) -> dict[str, dict[str, list[str]]]:
    """For every part, style → sorted subjects, as the training code selects them.

    The text encoder trains with the denoiser. Filters appear for the judge only: the VAE sees
    filtered pictures of the icons it is listed with.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for part, may_see in PARTS.items():
        for icon in store.icons:
            if may_see(icon):
                found.setdefault(part, {}).setdefault(icon.style, []).append(icon.subject)
    held_out = judge_held_out()
    found["judge"] = {
        style: list({i.subject for i in store.icons if judge_may_see(i, style, held_out)})
        for style in ALL_STYLES
    }
    for icon in store.icons:
        if icon.style in {art.style for art in EXTRA_SETS}:
            found["judge"].setdefault(icon.style, []).append(icon.subject)
    return {part: {s: sorted(v) for s, v in rows.items()} for part, rows in found.items()}


def write_manifest(store: Store, path: Path) -> None:
    """Write the manifest, one style a line, packed by xz."""
    parts = []
    for part, rows in manifest(store).items():
        lines = ",\n".join(
            f"  {json.dumps(style)}: {json.dumps(slugs, separators=(',', ':'))}"
            for style, slugs in rows.items()
        )
        parts.append(f" {json.dumps(part)}: {{\n{lines}\n }}")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    path.write_bytes(lzma.compress(text.encode(), preset=9))
