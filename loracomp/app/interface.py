"""The interface at ``/api/v1`` and what is told where something goes wrong."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import ClientDisconnect
from starlette.responses import Response

import loracomp
from loracomp.app.access import Access
from loracomp.app.guard import LOGIN, Application, Receive, Scope, Send
from loracomp.app.refusals import LimitError, NotFoundError, TooLargeError, public
from loracomp.app.state import App
from loracomp.errors import FormatError, LoracompError, ResourceError, UsageError

PREFIX = "/api/v1"
_log = logging.getLogger(__name__)
_STATUS: tuple[tuple[type[LoracompError], int], ...] = (
    (NotFoundError, 404),
    (LimitError, 429),
    (TooLargeError, 413),
    (FormatError, 422),
    (ResourceError, 503),
    (UsageError, 400),
)
_PAGE: dict[str, Any] = {"response_class": HTMLResponse, "include_in_schema": False}
_CLOSED = 499


def interface(app: App, access: Access, **options: Any) -> FastAPI:
    """The HTTP interface, its reference and the page where a token is entered.

    Args:
        app: What runs.
        access: Who may ask.
        options: More for ``fastapi.FastAPI``.
    """
    from loracomp.app.api import api_routes
    from loracomp.app.api.reference import reference
    from loracomp.app.login import login_routes

    server = FastAPI(
        title="loracomp",
        version=loracomp.__version__,
        summary="Compose, compare, train and mark image LoRAs.",
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
        **options,
    )
    server.state.loracomp = app
    server.include_router(api_routes())
    server.include_router(login_routes(access))
    server.add_api_route(f"{PREFIX}/docs", lambda: reference(server.openapi()), **_PAGE)
    return telling(server)


def telling(server: FastAPI) -> FastAPI:
    """A server that answers to errors with one line."""
    server.add_exception_handler(LoracompError, _told)
    server.add_exception_handler(RequestValidationError, _misunderstood)
    server.add_exception_handler(ClientDisconnect, _gone)
    server.add_exception_handler(Exception, _broken)
    return server


class Beside:
    """ASGI application of a page and the interface, which is made when it is first asked: a page needs none.

    Args:
        page: Answers to everything else.
        make: Makes the interface.
    """

    def __init__(self, page: Application, make: Callable[[], Application]) -> None:
        self._page, self._make = page, make
        self._made: Application | None = None
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the one answer or the other."""
        if scope.get("path", "").startswith((f"{PREFIX}/", LOGIN)):
            inner = self._made if self._made is not None else await asyncio.to_thread(self.interface)
            await inner(scope, receive, send)
        else:
            await self._page(scope, receive, send)

    def interface(self) -> Application:
        """The interface; the first call makes it."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _told(request: Request, error: Exception) -> JSONResponse:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 400)
    return JSONResponse({"error": public(error)}, status)


def _misunderstood(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, without repeating what was sent."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    lines = [f"{'.'.join(map(str, part['loc'][1:])) or 'request'}: {part['msg']}" for part in found[:5]]
    return JSONResponse({"error": public("; ".join(lines))}, 422)


def _gone(request: Request, error: Exception) -> Response:
    """For nobody: a page was closed while it sent something, which is no error of the app's."""
    return Response(status_code=_CLOSED)


def _broken(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JSONResponse({"error": "the server's disk is full; remove images or uploads"}, 507)
    _log.error("a request failed", exc_info=error)
    return JSONResponse({"error": "an error in loracomp; the server's log says more"}, 500)
