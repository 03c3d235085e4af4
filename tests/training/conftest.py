"""Data folders and configs for the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from tiny import tiny_pipeline

from loracomp.training.config import TrainConfig, make_config


@pytest.fixture(autouse=True)
def _no_user_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACOMP_CACHE", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four captioned 32-px pictures."""
    place = tmp_path / "data"
    place.mkdir()
    for index in range(4):
        image = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(image).ellipse((4, 4 + index, 20 + 2 * index, 28), fill=(60 * index, 40, 200))
        image.save(place / f"{index}.png")
        (place / f"{index}.txt").write_text(f"a circle of size {index}, ink style\n")
    return place


@pytest.fixture
def tiny_config() -> Callable[..., TrainConfig]:
    """Makes configs for tiny pipelines: 4 steps of 2 pictures at rank 2, no samples."""

    def make(base: str = "sd15", **values: Any) -> TrainConfig:
        small = {
            "name": "ink", "kind": "style", "base": base, "steps": 4, "batch": 2, "accumulation": 1,
            "rank": 2, "resolution": 32, "lr": 1e-2, "sample_count": 0, "saved_as": "fp32",
        }  # fmt: skip
        return make_config(small | values)

    return make


@pytest.fixture(scope="session")
def sd15() -> Any:
    """A tiny SD1.5 pipeline, for laws that do not depend on the kind of base."""
    return tiny_pipeline("sd15")
