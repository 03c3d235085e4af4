"""What every request passes before anything else sees it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from loracomp.app.access import COOKIE, Access
from loracomp.app.refusals import TooLargeError
from loracomp.app.settings import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOGIN = "/login"
_UPLOADS = ("/api/v1/uploads", "/gradio_api/upload")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
)


class Guard:
    """ASGI middleware: host, origin, user, and the size of what is sent.

    Args:
        inner: The application.
        access: Who may ask.
        limits: How much may be sent.
    """

    def __init__(self, inner: Application, access: Access, limits: Limits) -> None:
        self._inner, self._access, self._limits = inner, access, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await _answer(scope, send, *refused)
            return
        await self._pass(scope, receive, send)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason of a refusal; the user is put into the scope where there is none."""
        headers = {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in scope["headers"]}
        host, method = headers.get("host", ""), scope.get("method", "GET")
        if not self._access.host_allowed(host):
            return 421, "this app answers to names of this machine alone"
        site, mode = headers.get("sec-fetch-site", ""), headers.get("sec-fetch-mode", "")
        if not self._access.origin_allowed(method, host, headers.get("origin"), site, mode):
            return 403, "requests from other sites are refused"
        refused = self._signed_in(scope, headers)
        if refused is not None:
            return refused
        most = self._limits.upload_bytes if scope["path"].startswith(_UPLOADS) else self._limits.body_bytes
        said = headers.get("content-length", "0")
        if not said.isdecimal() or int(said) > most:
            return 413, f"more than {most:,} bytes"
        scope["state"]["most"] = most
        return None

    def _signed_in(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Puts the user into the scope, or says why there is none."""
        client = (scope.get("client") or ("", 0))[0]
        authorization = headers.get("authorization", "")
        user = self._access.user("", _cookie(headers.get("cookie", "")))
        guessing = bool(authorization) or scope["path"] == LOGIN
        if user is None and guessing and self._access.slowed(client):
            return 429, "too many wrong tokens; wait a minute"
        user = user or self._access.user(authorization)
        if user is None and scope["path"] != LOGIN:
            if authorization:
                self._access.failed(client)
            page = scope.get("method") == "GET" and "text/html" in headers.get("accept", "")
            return (303, LOGIN) if page else (401, "a token is needed; send Authorization: Bearer TOKEN")
        scope.setdefault("state", {})["user"] = user
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        most, taken, begun = scope["state"]["most"], 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise TooLargeError(f"more than {most:,} bytes")
            return message

        async def dressed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                present = {name.lower() for name, _ in message["headers"]}
                more = [pair for pair in _HEADERS if pair[0] not in present]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._inner(scope, counted, dressed)
        except TooLargeError:
            if not begun:
                await _answer(scope, send, 413, f"more than {most:,} bytes")


async def _answer(scope: Scope, send: Send, status: int, said: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [*_HEADERS, (b"cache-control", b"no-store")]
    if status == 303:
        body = b""
        headers.append((b"location", said.encode()))
    else:
        body = json.dumps({"error": said}).encode()
        headers.append((b"content-type", b"application/json"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _cookie(header: str) -> str:
    """The session in a Cookie header."""
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value.strip('"')
    return ""
