"""A tiny pipeline that draws with one adapter at a time, and what its pictures are held to."""

from __future__ import annotations

from typing import Any

from tiny import tiny_pipeline

from loracomp.alone import Alone
from loracomp.retrieval.drawn import WORDS

SHAPE = (len(WORDS), 3, 64, 64)
ROUNDING = 4
"""Grey levels that the order of sums may move a picture by."""


def tiny_artist(kind: str = "sd15", **settings: Any) -> Alone:
    """An artist that needs two steps at 32 pixels."""
    return Alone(
        tiny_pipeline(kind),
        settings={"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32} | settings,
    )
