"""The app over HTTP: the page at ``/``, the interface at ``/api/v1``, both behind the guard."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import ClientDisconnect
from starlette.responses import Response

import loracomp
from loracomp.app.access import Access
from loracomp.app.api import PREFIX, api_routes
from loracomp.app.api.reference import reference
from loracomp.app.assets import Assets
from loracomp.app.guard import Guard
from loracomp.app.login import login_routes
from loracomp.app.page_import import frontend
from loracomp.app.refusals import LimitError, NotFoundError, TooLargeError, public
from loracomp.app.settings import Settings
from loracomp.app.state import App
from loracomp.errors import FormatError, LoracompError, ResourceError, UsageError

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
_PATIENCE_S = 8.0
_FAREWELL_S = 2
_CLOSED = 499


def make_server(app: App, page: bool = True) -> Any:
    """The ASGI application of an app, which it starts and stops.

    Args:
        app: What runs.
        page: Whether to build the page; the interface works without it.
    """
    seen = threading.Event()

    @asynccontextmanager
    async def living(server: FastAPI) -> AsyncIterator[None]:
        app.start(seen, _PATIENCE_S if page else 0.0)
        yield
        app.stop()

    server = FastAPI(
        title="loracomp",
        version=loracomp.__version__,
        summary="Compose, compare, train and mark image LoRAs.",
        lifespan=living,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
    )
    access = Access(app.settings)
    server.state.loracomp = app
    server.include_router(api_routes())
    server.include_router(login_routes(access))
    server.add_api_route(f"{PREFIX}/docs", lambda: reference(server.openapi()), **_PAGE)
    server.add_exception_handler(LoracompError, _told)
    server.add_exception_handler(RequestValidationError, _misunderstood)
    server.add_exception_handler(ClientDisconnect, _gone)
    server.add_exception_handler(Exception, _broken)
    mounted = _noticing(_with_page(server, app) if page else server, seen)
    if page and app.settings.loopback:
        mounted = Assets(mounted, frontend() / "assets")
    return Guard(mounted, access, app.settings.limits)


def serve(settings: Settings, told: Callable[[str], None]) -> None:
    """Serves an app until it is interrupted.

    Args:
        settings: How.
        told: Told the address, once it is known.

    Raises:
        UsageError: The address is taken, cannot be used, or can be reached by others and has no token.
    """
    import uvicorn

    check_exposure(settings)
    listening = _listen(settings)
    try:
        app = App(settings)
    except LoracompError:
        listening.close()
        raise
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    told(f"http://{host}:{listening.getsockname()[1]}")
    with kept():
        server = make_server(app)
    logging.getLogger("uvicorn.error").addFilter(_worth_telling)
    config = uvicorn.Config(
        server, log_level="warning", timeout_graceful_shutdown=_FAREWELL_S, server_header=False
    )
    # Ctrl-C is how an app ends: uvicorn raises it again when all is saved.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def kept() -> Iterator[None]:
    """For what is made once and stays: searching it for garbage is a tenth of the time it takes to make."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _worth_telling(record: logging.LogRecord) -> bool:
    """Leaves out of the log that pages were open as the app ended."""
    ended = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not ended and "timeout graceful shutdown exceeded" not in record.getMessage()


def check_exposure(settings: Settings) -> None:
    """Raises :class:`UsageError` where others reach the app and it has no token."""
    if not settings.loopback and not settings.tokens:
        import secrets

        raise UsageError(
            f"--host {settings.host}: others reach it there, so it needs a token; "
            f"set LORACOMP_TOKEN or add --token, for example {secrets.token_urlsafe(24)}"
        )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((settings.host, settings.port))
        # Whoever comes while the page is being built waits instead of being refused.
        made.listen(128)
    except OSError as error:
        made.close()
        where = f"{settings.host}:{settings.port}"
        raise UsageError(f"{where}: cannot listen there ({error.strerror}); choose another --port") from None
    return made


def _with_page(server: FastAPI, app: App) -> Any:
    from loracomp.app.page_import import import_gradio, one_server

    # What the page's own fields upload lies here until it is taken, instead of in everybody's /tmp.
    sent = app.settings.folder("page")
    shutil.rmtree(sent)
    os.environ["GRADIO_TEMP_DIR"] = str(app.settings.folder("page"))
    gradio = import_gradio()
    from loracomp.app.ui import build, page_options

    with one_server():
        page = build(app)
    return gradio.mount_gradio_app(
        server,
        page,
        path="/",
        auth_dependency=lambda request: request.state.user,
        max_file_size=app.settings.limits.upload_bytes,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        **page_options(),
    )


def _noticing(inner: Any, seen: threading.Event) -> Any:
    """Sets ``seen`` when the page asks for more, or somebody else does: what is heavy may begin."""

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        if scope["type"] == "http" and scope["path"].startswith(("/gradio_api/", PREFIX)):
            seen.set()

    return outer


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
