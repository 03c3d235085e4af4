"""Requests before there is a page: they wait, and its scripts are named to them at once."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the app's packages are missing: pip install 'loracomp[app]'")

from loops import finished
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from loracomp.app.opening import Opening, PageHead
from loracomp.app.preloads import SHOWN, frontend, page_head

BEGIN, LINKS = b"<!doctype html><head>", b"<link>"
ACCEPT = {"accept": "text/html,*/*", "accept-encoding": "gzip"}


async def page(scope: Any, receive: Any, send: Any) -> None:
    """A page, and its own beginning and end of life."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    packed = Request(scope).headers.get("accept-encoding", "no packing")
    answer = HTMLResponse(BEGIN.decode() + f"the page, {packed}", headers={"x-own": "1"})
    await answer(scope, receive, send)


class Server:
    """Runs an application's life, as a server does."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.said: list[str] = []

    async def during(self, what: Callable[[], Awaitable[None]]) -> None:
        async def say(message: Any) -> None:
            self.said.append(message["type"])

        life = asyncio.create_task(self.application({"type": "lifespan"}, self._told.get, say))
        self._told.put_nowait({"type": "lifespan.startup"})
        await asyncio.sleep(0)
        while not self.said:
            await asyncio.sleep(0.001)
        await what()
        self._told.put_nowait({"type": "lifespan.shutdown"})
        await asyncio.wait_for(life, 20)


async def ask(application: Any, path: str = "/", **headers: str) -> list[dict[str, Any]]:
    """The messages of an answer."""
    sent: list[dict[str, Any]] = []
    await answer_into(sent, application, path, **headers)
    return sent


async def answer_into(sent: list[dict[str, Any]], application: Any, path: str, **headers: str) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": pairs}
    await application(scope, receive, send)


def body(messages: list[dict[str, Any]]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


def test_who_comes_early_gets_the_head_at_once_and_the_page_when_it_is_made() -> None:
    made = threading.Event()

    def make() -> Any:
        assert made.wait(20)
        return page

    opening = Opening(make, lambda: None)
    head = PageHead(opening, lambda: opening.ready, BEGIN, LINKS)
    server = Server(opening)

    async def visit() -> None:
        early: list[dict[str, Any]] = []
        waiting = asyncio.create_task(answer_into(early, head, "/", **ACCEPT))
        other = asyncio.create_task(ask(head, "/config"))
        while len(early) < 2:
            await asyncio.sleep(0.001)
        assert body(early) == BEGIN + LINKS
        assert not other.done()
        made.set()
        await asyncio.wait_for(waiting, 20)
        assert [one["type"] for one in early].count("http.response.start") == 1
        assert body(early) == BEGIN + LINKS + b"the page, no packing"
        assert b"the page" in body(await other)
        late = await ask(head, **ACCEPT)
        assert body(late) == BEGIN + LINKS + b"the page, no packing"
        assert (b"x-own", b"1") in late[0]["headers"]
        assert b"content-length" not in dict(late[0]["headers"])
        assert body(await ask(head, "/", accept="application/json")) == BEGIN + b"the page, no packing"

    finished(server.during(visit))
    assert server.said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_an_answer_that_is_no_page_stays_as_it_is() -> None:
    async def missing(scope: Any, receive: Any, send: Any) -> None:
        await Response("gone", 404)(scope, receive, send)

    answer = finished(ask(PageHead(missing, lambda: True, BEGIN, LINKS), **ACCEPT))
    assert (answer[0]["status"], body(answer)) == (404, b"gone")


def test_a_page_that_cannot_be_made_ends_the_server() -> None:
    ended: list[str] = []

    def make() -> Any:
        raise OSError("no room")

    opening = Opening(make, lambda: ended.append("ended"))
    server = Server(opening)

    async def visit() -> None:
        while not ended:
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await ask(opening)

    finished(server.during(visit))
    assert str(opening.error) == "no room"
    assert server.said[-1] == "lifespan.shutdown.complete"


def test_a_server_that_ends_early_ends_what_was_being_made() -> None:
    seen: list[str] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})
        seen.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    async def nothing() -> None:
        assert not opening.ready

    opening = Opening(lambda: noting, lambda: None)
    finished(Server(opening).during(nothing))
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


def test_the_head_names_files_that_are_there() -> None:
    folder = frontend()
    assert folder is not None
    begin, links = page_head(folder)
    assert (folder / "index.html").read_bytes().startswith(begin)
    assert begin.endswith(b"<head>")
    named = re.findall(r'href="\./assets/([^"]+)"', links.decode())
    assert len(named) == len(set(named))
    assert len([name for name in named if name.endswith(".js")]) > len(SHOWN)
    assert all((folder / "assets" / name).is_file() for name in named)


def test_a_page_that_is_not_as_expected_gets_no_links(tmp_path: Path) -> None:
    assert page_head(tmp_path) == (b"", b"")
    (tmp_path / "index.html").write_text("<p>{{ config }}</p><head>")
    assert page_head(tmp_path) == (b"", b"")
    (tmp_path / "index.html").write_text('<head><script src="./assets/none.js"></script></head>')
    assert page_head(tmp_path) == (b"<head>", b"")
