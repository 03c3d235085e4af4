"""Answering before the page is made: who comes early waits, with the page's scripts already on their way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loracomp.app.guard import Application, Message, Receive, Scope, Send

_HTML = [(b"content-type", b"text/html; charset=utf-8")]


class Opening:
    """ASGI application before one that takes seconds to make.

    Args:
        make: Makes it; called on a thread of its own.
        failed: Called where that, or its start, fails.

    Attributes:
        error: What went wrong, or None.
    """

    def __init__(self, make: Callable[[], Application], failed: Callable[[], None]) -> None:
        self._make, self._failed = make, failed
        self._made: asyncio.Future[Application] | None = None
        self.error: Exception | None = None

    @property
    def ready(self) -> bool:
        """Whether it is there."""
        return self._made is not None and self._made.done()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Waits until the application is there, and lets it answer."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif self._made is not None:
            inner = await asyncio.shield(self._made)
            await inner(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starts at once; the application behind starts when it is made, and ends with the server."""
        held = [await receive()]
        self._made = made = asyncio.get_running_loop().create_future()
        await send({"type": "lifespan.startup.complete"})

        async def told() -> Message:
            return held.pop() if held else await receive()

        async def tell(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                made.set_result(inner)
            elif message["type"].startswith("lifespan.shutdown"):
                await send(message)

        try:
            inner = await asyncio.to_thread(self._make)
            await inner(scope, told, tell)
        except Exception as error:
            if made.done():
                raise
            self.error = error
            made.cancel()
            self._failed()
            await receive()
            await send({"type": "lifespan.shutdown.complete"})


class PageHead:
    """ASGI middleware that names the page's scripts in its head, and sends that much before there is a page.

    Args:
        inner: The application; its page begins with ``begin``.
        ready: Whether it answers by itself and soon.
        begin: What every page begins with.
        links: What may follow there.
    """

    def __init__(self, inner: Application, ready: Callable[[], bool], begin: bytes, links: bytes) -> None:
        self._inner, self._ready, self._begin, self._links = inner, ready, begin, links

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the application answer; to ``GET /`` with links."""
        headers = scope.get("headers", ())
        asked = (scope.get("method"), scope.get("path")) == ("GET", "/")
        if not asked or not self._begin or not any(k == b"accept" and b"text/html" in v for k, v in headers):
            await self._inner(scope, receive, send)
            return
        # What is packed cannot be added to.
        scope = {**scope, "headers": [pair for pair in headers if pair[0] != b"accept-encoding"]}
        early = not self._ready()
        if early:
            await send({"type": "http.response.start", "status": 200, "headers": _HTML})
            await send({"type": "http.response.body", "body": self._begin + self._links, "more_body": True})
        await self._inner(scope, receive, self._with_links(send, early))

    def _with_links(self, send: Send, early: bool) -> Send:
        """Sends what the application answers; the beginning is left out where it was sent ``early``."""
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].lower() != b"content-length"]
                if not early:
                    await send({**message, "headers": kept})
                return
            body = message.get("body", b"")
            if not begun and body.startswith(self._begin):
                body = (
                    body[len(self._begin) :]
                    if early
                    else body.replace(self._begin, self._begin + self._links, 1)
                )
            begun = True
            await send({**message, "body": body})

        return tell
