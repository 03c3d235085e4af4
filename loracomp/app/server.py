"""The app over HTTP: the page at ``/``, the interface at ``/api/v1``, both behind the guard."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import FastAPI

from loracomp.app.access import Access
from loracomp.app.assets import Assets
from loracomp.app.guard import Application, Guard
from loracomp.app.interface import PREFIX, Beside, interface, telling
from loracomp.app.opening import Opening, PageHead
from loracomp.app.preloads import frontend, page_head
from loracomp.app.settings import Settings
from loracomp.app.state import App
from loracomp.errors import LoracompError, ResourceError, UsageError

_PATIENCE_S = 8.0
_FAREWELL_S = 2


def make_server(app: App, page: bool = True) -> Any:
    """The ASGI application of an app, which it starts and stops.

    Args:
        app: What runs.
        page: Whether to build the page; the interface works without it.
    """
    access = Access(app.settings)
    return Guard(_unguarded(app, access, page), access, app.settings.limits)


def _unguarded(app: App, access: Access, page: bool = True) -> Application:
    seen = threading.Event()
    if not page:
        return _noticing(interface(app, access, lifespan=_living(app)), seen)

    sent = threading.Event()
    # FastAPI silences this one for a moment; the page's own models may be built in another.
    warnings.filterwarnings("ignore", message="The '.*' attribute with value")

    def first() -> None:
        """What fits between the page's leaving and its questions, before anything heavy is imported.

        FastAPI silences its own warnings while the interface is made, so nothing else may warn meanwhile.
        """
        sent.wait(_PATIENCE_S)
        app.show_shipped()
        both.interface()
        seen.wait(_PATIENCE_S)

    server = FastAPI(lifespan=_living(app, first), docs_url=None, redoc_url=None, openapi_url=None)
    both = Beside(_with_page(telling(server), app), lambda: interface(app, access))
    return _noticing(_noticing(both, seen), sent, ("/",))


def _living(app: App, first: Callable[[], object] = lambda: None) -> Any:
    @asynccontextmanager
    async def living(server: FastAPI) -> AsyncIterator[None]:
        app.start(first)
        yield
        app.stop()

    return living


def serve(settings: Settings, told: Callable[[str], None]) -> None:
    """Serves an app until it is interrupted.

    Args:
        settings: How.
        told: Told the address, once it is known.

    Raises:
        ResourceError: A package is missing.
        UsageError: The address is taken, cannot be used, or can be reached by others and has no token.
    """
    import uvicorn

    check_exposure(settings)
    folder = frontend()
    if folder is None:
        raise ResourceError("the app needs more packages (gradio); pip install 'loracomp[app]'")
    listening = listen(settings)
    try:
        app = App(settings)
    except LoracompError:
        listening.close()
        raise
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    told(f"http://{host}:{listening.getsockname()[1]}")
    access = Access(settings)

    def make() -> Application:
        with kept():
            return _unguarded(app, access)

    def failed() -> None:
        server.should_exit = True

    opening = Opening(make, failed)
    answering: Application = opening
    if settings.loopback:
        answering = Assets(PageHead(opening, lambda: opening.ready, *page_head(folder)), folder / "assets")
    logging.getLogger("uvicorn.error").addFilter(_worth_telling)
    config = uvicorn.Config(
        Guard(answering, access, settings.limits),
        log_level="warning",
        timeout_graceful_shutdown=_FAREWELL_S,
        server_header=False,
    )
    server = uvicorn.Server(config)
    # Ctrl-C is how an app ends: uvicorn raises it again when all is saved.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    server.run(sockets=[listening])
    if opening.error is not None:
        app.stop()
        raise opening.error


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


def listen(settings: Settings) -> socket.socket:
    """The address, taken; raises :class:`UsageError` where it cannot be.

    The protocol is named because asyncio lets small answers leave at once only where it is.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
    from loracomp.app.page_import import import_gradio, one_server, remembered

    # What the page's own fields upload lies here until it is taken, instead of in everybody's /tmp.
    sent = app.settings.folder("page")
    shutil.rmtree(sent)
    os.environ["GRADIO_TEMP_DIR"] = str(app.settings.folder("page"))
    gradio = import_gradio()
    from loracomp.app.ui import build, page_options

    with remembered():
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


def _noticing(inner: Any, seen: threading.Event, paths: tuple[str, ...] = ("/gradio_api/", PREFIX)) -> Any:
    """Sets ``seen`` when the page has asked for more, or somebody else has: what is heavy may begin.

    Args:
        inner: The application.
        seen: What is set.
        paths: How the address of what counts begins.
    """

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        if scope["type"] == "http" and scope["path"].startswith(paths):
            seen.set()

    return outer
