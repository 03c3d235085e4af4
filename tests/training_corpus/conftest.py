"""A world for the corpus' tests: synthetic drawings of many subjects in every style, glyph's unseen too."""

from __future__ import annotations

import numpy as np
import pytest

from loracomp.training.corpus.pools import GROUPS
from loracomp.training.glyph.packages import ART_SETS, EXTRA_SETS
from loracomp.training.glyph.splits import committed
from loracomp.training.glyph.store import Store
from loracomp.training.glyph.subjects import Icon, Subject

STYLES = tuple(art.style for art in (*ART_SETS, *EXTRA_SETS))


def synthetic_svg(subject: int, style: int) -> str:
    """A shape that tells the subject, in strokes and colors that tell the style."""
    rng = np.random.default_rng(subject)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in rng.uniform(2, 30, (4 + subject % 3, 2)))
    fill = f"hsl({(subject * 47) % 360},80%,{35 + 4 * style}%)"
    pen = f'stroke="hsl({style * 41},60%,30%)" stroke-width="{style % 3}"'
    body = f'<polygon points="{points}" fill="{fill}" {pen}/><circle cx="16" cy="16" r="{subject % 5 + 2}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{body}</svg>'


@pytest.fixture(scope="session")
def store() -> Store:
    """Every subject that the denoiser or the judge saw, and those that the denoiser did not."""
    seen = committed("manifest.json.xz")
    slugs = sorted({slug for part in seen.values() for styles in part.values() for slug in styles})
    subjects = {
        slug: Subject(slug, slug.replace("-", " "), GROUPS[i % len(GROUPS)], ("thing", "round"))
        for i, slug in enumerate(slugs)
    }
    icons = [
        Icon(slug, style, synthetic_svg(i, j))
        for j, style in enumerate(STYLES)
        for i, slug in enumerate(slugs)
    ]
    return Store(subjects, icons)
