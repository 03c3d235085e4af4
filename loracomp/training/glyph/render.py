"""SVG → pixels, on many cores, and the cache of rendered icons."""

from __future__ import annotations

import io
import re
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SIZE = 128
STANDARD_SCALE = 0.9
_BOX = re.compile(r'viewBox="([-\d.]+) ([-\d.]+) ([-\d.]+) ([-\d.]+)"')

Placement = tuple[float, float, float]
"""Side of the icon over the side of the picture, then the shift right and down as a fraction of it."""


def placed(svg: str, placement: Placement) -> str:
    """The SVG with its view box widened so that the icon has this size and place in a square."""
    scale, right, down = placement
    match = _BOX.search(svg)
    if match is None:
        raise ValueError(f"an SVG without a viewBox: {svg[:80]!r}")
    left, top, width, height = (float(g) for g in match.groups())
    side = max(width, height) / scale
    x = left + width / 2 - side * (0.5 + right)
    y = top + height / 2 - side * (0.5 + down)
    return svg.replace(match.group(0), f'viewBox="{x:.4f} {y:.4f} {side:.4f} {side:.4f}"', 1)


def rasterize(svg: str, placement: Placement = (STANDARD_SCALE, 0.0, 0.0)) -> NDArray[np.uint8]:
    """One icon as (128, 128, 4) straight-alpha RGBA, 0 to 255."""
    import resvg_py

    data = resvg_py.svg_to_bytes(svg_string=placed(svg, placement), width=SIZE, height=SIZE)
    picture = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    return np.asarray(picture, dtype=np.uint8)


def random_placement(rng: np.random.Generator) -> Placement:
    """Scale 0.78 to 1.0, shifted by at most 5 % of the picture and never far over its edge."""
    scale = float(rng.uniform(0.78, 1.0))
    reach = min(0.05, (1.04 - scale) / 2)
    return scale, float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach))


def render_all(svgs: Sequence[str], variants: int, seed: int = 0, workers: int = 1) -> NDArray[np.uint8]:
    """All icons as (icons, variants, 128, 128, 4) RGBA; variant 0 is the standard placement."""
    rng = np.random.default_rng(seed)
    standard: Placement = (STANDARD_SCALE, 0.0, 0.0)
    jobs = [(svg, [standard, *(random_placement(rng) for _ in range(variants - 1))]) for svg in svgs]
    out = np.empty((len(jobs), variants, SIZE, SIZE, 4), np.uint8)
    if workers == 1:
        for i, job in enumerate(jobs):
            out[i] = _render_job(job)
        return out
    with ProcessPoolExecutor(workers) as pool:
        for i, pictures in enumerate(pool.map(_render_job, jobs, chunksize=16)):
            out[i] = pictures
    return out


def _render_job(job: tuple[str, list[Placement]]) -> NDArray[np.uint8]:
    svg, placements = job
    return np.stack([rasterize_near(svg, placement) for placement in placements])


def rasterize_near(svg: str, placement: Placement) -> NDArray[np.uint8]:
    """Like ``rasterize``; where the renderer breaks down on a placement, one a little larger."""
    scale, right, down = placement
    for growth in (1.0, 1.013, 1.031, 0.987):
        try:
            return rasterize(svg, (scale * growth, right, down))
        except BaseException as error:  # a Rust panic is no Exception
            if type(error).__name__ != "PanicException":
                raise
    return np.zeros((SIZE, SIZE, 4), np.uint8)
