"""No path, forged id or damaged file gets anywhere, and no refusal tells anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adapterfiles
import pytest
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from loracomp.app.refusals import public
from loracomp.app.server import make_server
from loracomp.app.state import App

TRAVERSALS = (
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "C:\\Windows\\win.ini",
    "..\\..\\jobs.sqlite",
    "jobs.sqlite",
    "file:///etc/passwd",
    "mono%00.png",
    "~root/.bashrc",
    "%00",
    "a" * 5000,
)


LABELED = ("/api/v1/datasets",)
"""Routes whose only text is a label, which may be anything."""


def quiet(answer: Any, folder: Path) -> bool:
    """Whether an answer tells nothing of files, code or tracebacks."""
    secrets = (str(folder), "/root", "root:", "Traceback", 'File "', "site-packages", "sqlite3.", "/tmp/")
    return not any(secret in answer.text for secret in secrets)


def asked(table: dict[str, Any], value: str) -> Iterator[tuple[str, str, Any]]:
    """Every route with ``value`` as each of its parameters, and as every text of its body."""
    for path, deeds in table["paths"].items():
        for method, deed in deeds.items():
            said = deed.get("requestBody", {}).get("content", {}).get("application/json", {})
            reference = said.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
            body = filled(table, {"$ref": f"/{reference}"}, value) if reference else None
            if (body or "{" in path) and path not in LABELED:
                parts = [value if part.startswith("{") else part for part in path.split("/")]
                yield method.upper(), "/".join(parts), body


def filled(table: dict[str, Any], field: dict[str, Any], value: str) -> Any:
    field = next(iter(field.get("anyOf", ())), field)
    if "$ref" in field:
        inside = table["components"]["schemas"][field["$ref"].rsplit("/", 1)[1]]
        return {name: filled(table, part, value) for name, part in inside.get("properties", {}).items()}
    kinds: dict[str, Any] = {"string": value, "integer": 1, "number": 1.0, "boolean": False, "object": {}}
    if field.get("type") == "array":
        return [filled(table, field["items"], value)] if isinstance(field.get("items"), dict) else []
    return field.get("enum", [kinds.get(field.get("type", "string"))])[0]


def test_no_parameter_reaches_the_file_system(client: TestClient, app: App) -> None:
    table = client.get("/api/v1/openapi.json").json()
    before = sorted(app.settings.data.rglob("*"))
    for path in TRAVERSALS:
        tried = list(asked(table, path))
        assert len(tried) > 40
        for method, route, body in tried:
            answer = client.request(method, route, json=body)
            assert 400 <= answer.status_code < 500, (method, route, answer.text)
            assert quiet(answer, app.settings.data.parent), (method, route, answer.text)
    assert sorted(app.settings.data.rglob("*")) == before


def test_labels_are_labels_and_no_places(client: TestClient, app: App) -> None:
    for path in TRAVERSALS:
        answer = client.post("/api/v1/datasets", json={"name": path[:80]})
        assert answer.status_code == 201
        folder = app.datasets.path(answer.json()["id"], "local")
        assert folder.parent == app.settings.data / "datasets"
        assert folder.name.isalnum()


def test_an_uploads_name_is_a_name_and_no_place(client: TestClient, app: App, tmp_path: Path) -> None:
    raw = adapterfiles.write(tmp_path / "sent", 1)[0].read_bytes()
    for name in ("../../evil.safetensors", "/etc/cron.d/evil", "..\\evil", "\x00", "..", "CON:<>|", ""):
        answer = client.post("/api/v1/uploads", params={"kind": "adapter", "name": name}, content=raw)
        assert answer.status_code == 201, answer.text
        assert not set('/\\:<>|"') & set(answer.json()["name"])
        assert (app.settings.data / "uploads" / answer.json()["id"]).is_file()
    assert not list(tmp_path.rglob("evil*"))


def test_uploads_that_are_not_what_they_claim_leave_nothing(client: TestClient, app: App) -> None:
    bomb = (1 << 62).to_bytes(8, "little") + b"{}"
    pickle = b"\x80\x04\x95" + b"\x00" * 64
    zipped = b"PK\x03\x04" + b"\x00" * 64
    png = b"\x89PNG\r\n\x1a\n" + b"\x00" * 64
    huge = (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x0f\x00\x00\x00\x0f\x00\x00\x08\x02\x00\x00\x00"
        + b"\x00" * 8
    )
    script = b"<svg onload=alert(1)>"
    for kind, raws in (
        ("adapter", (bomb, pickle, zipped, png, b"", b"\xff" * 100)),
        ("picture", (bomb, png, huge, script, b"")),
        ("key", (b"{}", b"[]", png, b'{"format": "loracomp-watermark-key/1"}')),
    ):
        for raw in raws:
            answer = client.post("/api/v1/uploads", params={"kind": kind, "name": "it"}, content=raw)
            assert answer.status_code in (400, 422), (kind, raw[:20], answer.text)
            assert quiet(answer, app.settings.data.parent)
            assert answer.json()["error"].startswith("it")
    assert client.post("/api/v1/uploads", params={"kind": "program"}, content=b"x").status_code == 422
    assert list((app.settings.data / "uploads").iterdir()) == []


def test_uploads_end_at_the_limit_while_they_arrive(client: TestClient, app: App) -> None:
    limit = app.settings.limits.upload_bytes
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while taken < 100 * limit:
            taken += 1 << 16
            yield b"\x00" * (1 << 16)

    for content in (b"\x00" * (limit + 1), endless()):
        answer = client.post("/api/v1/uploads", params={"kind": "adapter"}, content=content)
        assert answer.status_code == 413
        assert quiet(answer, app.settings.data.parent)
    lied = client.post(
        "/api/v1/uploads", params={"kind": "adapter"}, content=b"", headers={"content-length": "-1"}
    )
    assert lied.status_code == 413
    assert list((app.settings.data / "uploads").iterdir()) == []
    body = client.post("/api/v1/recipes", content=b"[" * (app.settings.limits.body_bytes + 1))
    assert body.status_code == 413
    deep = client.post("/api/v1/recipes", content=b"[" * 50_000, headers={"content-type": "application/json"})
    assert deep.status_code in (400, 422)


def test_forged_ids_are_not_found_and_look_all_the_same(app: App, client: TestClient) -> None:
    mine = app.jobs.submit("generate", {}, "somebody else")
    answers = [
        client.request(method, f"/api/v1/jobs/{id_}{deed}")
        for id_ in (mine, mine[:-1] + "x", "1", "0' OR '1'='1")
        for method, deed in (("GET", ""), ("POST", "/cancel"), ("GET", "/preview"), ("GET", "/training"))
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert {answer.json()["error"] for answer in answers} == {"no such job; it may have been removed"}
    assert app.jobs.get(mine, "somebody else").state == "queued"


def test_an_error_inside_tells_nothing(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*about: object) -> None:
        raise RuntimeError(f"at {app.settings.data}/secret")

    monkeypatch.setattr(app.library, "facets", broken)
    browser = TestClient(
        make_server(app, page=False), base_url="http://localhost", raise_server_exceptions=False
    )
    answer = browser.get("/api/v1/adapters/facets")
    assert (answer.status_code, answer.json()["error"]) == (
        500,
        "an error in loracomp; the server's log says more",
    )


def test_a_page_that_closes_while_it_sends_is_no_error(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*about: object) -> None:
        raise ClientDisconnect()

    monkeypatch.setattr(app.library, "facets", gone)
    browser = TestClient(make_server(app, page=False), base_url="http://localhost")
    assert browser.get("/api/v1/adapters/facets").status_code == 499
    assert "failed" not in caplog.text


def test_errors_keep_names_and_lose_folders() -> None:
    for said, shown in (
        (
            "/home/ann/loras/a b/x.safetensors: is empty; save it again",
            "x.safetensors: is empty; save it again",
        ),
        ("C:\\Users\\ann\\x.png: no picture", "x.png: no picture"),
        ("~/loras/x.safetensors: no", "x.safetensors: no"),
        ("width 7 is no multiple of 8 and/or too small", "width 7 is no multiple of 8 and/or too small"),
        ("at 1/2 of the run", "at 1/2 of the run"),
    ):
        assert "ann" not in public(said)
        assert public(said).endswith(shown.partition(" b/")[2] or shown)
