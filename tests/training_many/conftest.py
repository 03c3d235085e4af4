"""Fixtures of the tests of many adapters at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import draw_folder, write_rows
from tiny import tiny_pipeline


@pytest.fixture(autouse=True)
def _no_user_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACOMP_CACHE", "")


@pytest.fixture(scope="session")
def sd15() -> Any:
    """A tiny SD1.5 pipeline, for laws that do not depend on the kind of base."""
    return tiny_pipeline("sd15")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a manifest beside two folders of pictures, ``one`` and ``two``."""
    draw_folder(tmp_path / "one", 3, 40)
    draw_folder(tmp_path / "two", 5, 160)

    def manifest(*rows: dict[str, Any], base: str = "sd15") -> Path:
        return write_rows(tmp_path / "many.jsonl", *rows, base=base)

    return manifest
