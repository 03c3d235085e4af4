"""The twelve background colors that captions name, and pictures on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLORS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (222, 66, 62),
    "orange": (245, 154, 56),
    "yellow": (250, 220, 92),
    "green": (92, 184, 92),
    "cyan": (98, 208, 220),
    "blue": (74, 122, 218),
    "purple": (146, 90, 196),
    "pink": (248, 158, 196),
    "brown": (142, 98, 66),
    "gray": (152, 152, 152),
    "black": (22, 22, 26),
}
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)


def on_background(rgba: NDArray[np.uint8], color: str) -> NDArray[np.uint8]:
    """Composite (..., 4) straight-alpha RGBA over a named color, giving (..., 3) RGB, 0 to 255."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    back = np.asarray(COLORS[color], np.float32)
    mixed = rgba[..., :3].astype(np.float32) * alpha + back * (1 - alpha)
    return np.round(mixed).astype(np.uint8)
