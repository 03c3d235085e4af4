"""Apps in temporary folders: without workers, without a base model, or running on glyph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the app's packages are missing: pip install 'loracomp[app]'")

from starlette.testclient import TestClient

from loracomp.app.server import make_server
from loracomp.app.settings import Limits, Settings
from loracomp.app.state import App


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An app on its own, with one library folder and small limits."""
    (tmp_path / "loras").mkdir()
    limits = Limits(queued=3, steps=20, batch=4, side=256, upload_bytes=1 << 20, body_bytes=1 << 16)
    return Settings(data=tmp_path / "data", library=(tmp_path / "loras",), limits=limits)


@pytest.fixture
def app(settings: Settings) -> Iterator[App]:
    """An app that answers and does no work."""
    made = App(settings)
    yield made
    made.stop()


@pytest.fixture
def wait() -> Callable[..., Any]:
    """Waits until something is true and gives it back; fails after a while."""

    def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := what():
                return found
            time.sleep(0.02)
        raise AssertionError(f"nothing came of {what} in {seconds:g} s")

    return until


@pytest.fixture
def client(app: App) -> TestClient:
    """An app for this machine alone; its workers are not started."""
    return TestClient(make_server(app, page=False), base_url="http://127.0.0.1:7860")
