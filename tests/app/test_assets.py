"""The page's own files: from memory where they are known, never anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the app's packages are missing: pip install 'loracomp[app]'")

from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from loracomp.app.assets import Assets


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A folder of one script, a secret beside it, and an application behind that answers to everything."""
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "index-1a2b.js").write_text("let one = 1")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "inner").mkdir()

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("behind", 404)(scope, receive, send)

    return TestClient(Assets(behind, folder))


def test_a_known_file_is_answered_for_good(client: TestClient) -> None:
    for _ in range(2):
        answer = client.get("/assets/index-1a2b.js")
        assert (answer.status_code, answer.text) == (200, "let one = 1")
        assert "javascript" in answer.headers["content-type"]
        assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "path",
    [
        "/assets/",
        "/assets/inner",
        "/assets/../secret.txt",
        "/assets/%2e%2e/secret.txt",
        "/index-1a2b.js",
        "/",
    ],
)
def test_everything_else_goes_to_the_application(client: TestClient, path: str) -> None:
    assert client.get(path).text == "behind"


def test_other_ways_of_asking_go_to_the_application(client: TestClient) -> None:
    assert client.post("/assets/index-1a2b.js").text == "behind"
    assert client.get("/assets/index-1a2b.js", headers={"range": "bytes=0-2"}).text == "behind"


def test_a_file_that_went_away_goes_to_the_application(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "assets" / "index-1a2b.js").unlink()
    assert client.get("/assets/index-1a2b.js").text == "behind"
