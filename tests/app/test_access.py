"""Who may do what: tokens, users apart from each other, other sites."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import adapterfiles
import pytest
from starlette.testclient import TestClient

from loracomp.app.access import Access
from loracomp.app.server import check_exposure, make_server
from loracomp.app.settings import Settings, read_tokens
from loracomp.app.state import App
from loracomp.errors import UsageError

TOKENS = {"ann": "a" * 24, "bob": "b" * 24}


@pytest.fixture
def guarded(settings: Settings) -> Iterator[TestClient]:
    """An app that others reach, with two users."""
    more = {"host": "0.0.0.0", "tokens": TOKENS, "data": settings.data.with_name("guarded")}
    made = App(settings.model_copy(update=more))
    yield TestClient(make_server(made, page=False), base_url="http://192.0.2.7:7860")
    made.stop()


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[user]}"}


def test_without_the_right_token_nothing_is_answered(guarded: TestClient) -> None:
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "Bearer " + "c" * 24},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKENS['ann']}"},
        {"Cookie": f"loracomp_session={TOKENS['ann']}"},
        {"Cookie": "loracomp_session=ann:" + "0" * 64},
        {"Cookie": "loracomp_session=:"},
        {"X-Forwarded-For": "127.0.0.1", "Host": "localhost"},
    )
    for headers in wrong:
        for method, path in (
            ("GET", "/api/v1/state"),
            ("POST", "/api/v1/jobs/index"),
            ("GET", "/"),
        ):
            answer = guarded.request(method, path, headers=headers)
            assert answer.status_code == 401, (headers, path)
            assert answer.json() == {"error": "a token is needed; send Authorization: Bearer TOKEN"}
    assert guarded.get("/api/v1/state", headers=bearer("ann")).status_code == 200


def test_guessing_tokens_is_slowed_and_locks_nobody_out(guarded: TestClient) -> None:
    page = guarded.post("/login", data={"token": TOKENS["bob"]}, follow_redirects=False)
    assert page.status_code == 303
    cookie = {"Cookie": page.headers["set-cookie"].partition(";")[0]}
    guarded.cookies.clear()
    statuses = [
        guarded.get("/api/v1/state", headers={"Authorization": f"Bearer {n:024d}"}).status_code
        for n in range(15)
    ]
    assert statuses == [401] * 10 + [429] * 5
    assert guarded.post("/login", data={"token": TOKENS["ann"]}).status_code == 429
    assert guarded.get("/api/v1/state", headers=bearer("ann")).status_code == 429
    assert guarded.get("/api/v1/state", headers=cookie).status_code == 200


def test_signing_in_gives_a_cookie_that_scripts_cannot_read(guarded: TestClient) -> None:
    page = guarded.get("/", headers={"Accept": "text/html"}, follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/login")
    assert "<form" in page.text
    wrong = guarded.post("/login", data={"token": "<script>alert(1)</script>"})
    assert wrong.status_code == 401
    assert "alert(1)" not in wrong.text
    right = guarded.post("/login", data={"token": TOKENS["ann"]}, follow_redirects=False)
    said = right.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=lax" in said
    assert TOKENS["ann"] not in said
    assert guarded.get("/api/v1/state").status_code == 200


def test_users_see_nothing_of_each_other(guarded: TestClient, tmp_path: Path) -> None:
    ann, bob = bearer("ann"), bearer("bob")
    raw = adapterfiles.write(tmp_path / "sent", 1)[0].read_bytes()
    job = guarded.post("/api/v1/jobs/index", headers=ann).json()["id"]
    upload = guarded.post("/api/v1/uploads", params={"kind": "adapter"}, content=raw, headers=ann).json()[
        "id"
    ]
    data = guarded.post("/api/v1/datasets", json={"name": "mine"}, headers=ann).json()["id"]
    recipe = {"name": "mine", "request": {"prompt": "a"}}
    kept = guarded.post("/api/v1/recipes", json=recipe, headers=ann).json()["id"]
    key = guarded.post("/api/v1/keys", headers=ann).json()["id"]
    for method, path in (
        ("GET", f"jobs/{job}"),
        ("POST", f"jobs/{job}/cancel"),
        ("DELETE", f"uploads/{upload}"),
        ("DELETE", f"datasets/{data}"),
        ("GET", f"datasets/{data}/pictures"),
        ("GET", f"recipes/{kept}/export"),
        ("GET", f"keys/{key}/file"),
        ("DELETE", f"keys/{key}"),
    ):
        assert guarded.request(method, f"/api/v1/{path}", headers=bob).status_code == 404, path
    for path in ("jobs", "datasets", "recipes", "keys"):
        assert guarded.get(f"/api/v1/{path}", headers=bob).json() == []
        assert len(guarded.get(f"/api/v1/{path}", headers=ann).json()) == 1
    assert guarded.get(f"/api/v1/keys/{key}/file", headers=ann).status_code == 200


def test_limits_are_per_user(guarded: TestClient) -> None:
    ann = [guarded.post("/api/v1/jobs/index", headers=bearer("ann")).status_code for _ in range(5)]
    assert ann == [202] * 3 + [429] * 2
    assert guarded.post("/api/v1/jobs/index", headers=bearer("bob")).status_code == 202


def test_other_sites_are_refused(client: TestClient, guarded: TestClient, app: App) -> None:
    here, there = "http://127.0.0.1:7860", "http://192.0.2.7:7860"
    for browser, own, headers in ((client, here, {}), (guarded, there, bearer("ann"))):
        for strange in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": own.replace("7860", "80")},
            {"Origin": f"{own}.evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        ):
            answer = browser.post("/api/v1/jobs/index", headers={**headers, **strange})
            assert (answer.status_code, answer.json()) == (
                403,
                {"error": "requests from other sites are refused"},
            )
        assert (
            browser.get("/api/v1/state", headers={**headers, "Origin": "https://evil.example"}).status_code
            == 403
        )
        linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert browser.get("/api/v1/state", headers={**headers, **linked}).status_code == 200
        assert browser.post("/api/v1/jobs/index", headers={**headers, "Origin": own}).status_code == 202
    assert len(app.jobs.list("local")) == 1


def test_names_that_point_here_are_not_names_of_this_machine(client: TestClient) -> None:
    for host in ("evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        answer = client.get("/api/v1/state", headers={"Host": host})
        assert answer.status_code == 421, host
    for host in ("localhost:7860", "127.0.0.1", "[::1]:7860"):
        assert client.get("/api/v1/state", headers={"Host": host}).status_code == 200


def test_answers_cannot_be_framed_or_sniffed(client: TestClient) -> None:
    for path in ("/api/v1/state", "/api/v1/jobs/x"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers


def test_an_app_that_others_reach_needs_a_token(settings: Settings) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.com"):
        with pytest.raises(UsageError, match="needs a token"):
            check_exposure(settings.model_copy(update={"host": host}))
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(settings.model_copy(update={"host": host}))
    check_exposure(settings.model_copy(update={"host": "0.0.0.0", "tokens": TOKENS}))


def test_tokens_are_long_and_told_apart() -> None:
    assert read_tokens(["s" * 20, f"bob={'t' * 20}"]) == {"owner": "s" * 20, "bob": "t" * 20}
    assert read_tokens(["has=equals+/" + "x" * 20]) == {"has": "equals+/" + "x" * 20}
    for texts in (["short"], ["a=" + "s" * 20, "a=" + "t" * 20], ["a=" + "s" * 20, "b=" + "s" * 20]):
        with pytest.raises(UsageError, match="--token"):
            read_tokens(texts)


def test_a_changed_token_ends_its_sessions(settings: Settings) -> None:
    old = Access(settings.model_copy(update={"tokens": TOKENS}))
    new = Access(settings.model_copy(update={"tokens": {**TOKENS, "ann": "n" * 24}}))
    assert old.user("", old.session("ann")) == "ann"
    assert new.user("", old.session("ann")) is None
    assert new.user("", old.session("bob")) == "bob"


# Gradio leaves the event loops of the applications that it makes and drops for the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_pages_own_routes_are_guarded_too(settings: Settings) -> None:
    pytest.importorskip("gradio")
    made = App(settings.model_copy(update={"host": "0.0.0.0", "tokens": TOKENS}))
    page = TestClient(make_server(made), base_url="http://192.0.2.7:7860")
    files = {"files": ("../../evil.txt", b"x" * 100)}
    for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
        assert page.get(path).status_code == 401
    assert page.post("/gradio_api/upload", files=files).status_code == 401
    assert page.get("/config", headers=bearer("ann")).status_code == 200
    for place in (
        "/etc/passwd",
        str(settings.database),
        str(settings.data / "keys"),
        "loracomp/app/server.py",
    ):
        answer = page.get(f"/gradio_api/file={place}", headers=bearer("ann"))
        assert answer.status_code in (403, 404)
        assert "SQLite" not in answer.text
    strange = {**bearer("ann"), "Origin": "https://evil.example"}
    assert page.post("/gradio_api/upload", files=files, headers=strange).status_code == 403
    large = {"files": ("large.bin", b"x" * (settings.limits.upload_bytes + 1))}
    assert page.post("/gradio_api/upload", files=large, headers=bearer("ann")).status_code == 413
    (kept,) = page.post("/gradio_api/upload", files=files, headers=bearer("ann")).json()
    assert Path(kept).is_relative_to(settings.data / "page")
    made.stop()
    del page
    # The one that it left to this thread would be collected in another test.
    asyncio.set_event_loop(None)
    gc.collect()
