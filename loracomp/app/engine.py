"""The base model: opened in the background, used by one job at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loracomp.app.refusals import public
from loracomp.app.settings import Settings
from loracomp.errors import LoracompError, ResourceError

_log = logging.getLogger(__name__)


class Engine:
    """Opens the base on a thread of its own, so that pages answer before torch is there.

    Args:
        settings: Which base, where and in which arithmetic.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.base, self.dtype = settings.base, settings.dtype
        self._lock = threading.Lock()
        self._opened = threading.Event()
        self._thread: threading.Thread | None = None
        self._pipe: Any = None
        self._error = ""
        self._began = time.monotonic()
        self._seconds: float | None = None

    def start(self, before: Callable[[], object] = lambda: None) -> None:
        """Begins to open the base; ``before`` runs first, on the same thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(before,), daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Returns once nothing is being opened, be it that nothing ever was.

        The parts of transformers are imported as they are asked for, and two threads that ask at once get
        into each other's way: whatever imports them calls this first.
        """
        if self._thread is not None:
            self._opened.wait()

    def status(self) -> dict[str, Any]:
        """State (``loading``, ``ready`` or ``error``), base, seconds so far, and what went wrong."""
        state = "error" if self._error else "ready" if self._opened.is_set() else "loading"
        seconds = time.monotonic() - self._began if self._seconds is None else self._seconds
        return {
            "state": state,
            "base": public(self._settings.base),
            "seconds": round(seconds, 1),
            "device": str(self._pipe.device) if self._pipe is not None else "",
            "error": self._error,
        }

    @property
    def ready(self) -> bool:
        """Whether it is open."""
        return self._opened.is_set() and not self._error

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until it is open or has failed; False if that took longer."""
        return self._opened.wait(seconds)

    @contextmanager
    def pipe(self, scheduler: str = "") -> Iterator[Any]:
        """The pipeline with a scheduler by name, for one caller at a time.

        Raises:
            ResourceError: The base cannot be opened.
            UnknownNameError: No such scheduler.
        """
        self._opened.wait()
        if self._error:
            raise ResourceError(f"the base model is not there: {self._error}")
        with self._lock:
            before = self._pipe.scheduler
            self._pipe.scheduler = self._scheduler(before, scheduler)
            try:
                yield self._pipe
            finally:
                self._pipe.scheduler = before

    def _scheduler(self, own: Any, name: str) -> Any:
        """A scheduler without a past, as a fresh process would have: steps leave their state behind."""
        import diffusers

        from loracomp.loading import SCHEDULERS

        kind, options = (
            (getattr(diffusers, SCHEDULERS[name][0]), SCHEDULERS[name][1]) if name else (type(own), {})
        )
        return kind.from_config(own.config, **options)

    def _run(self, before: Callable[[], object]) -> None:
        try:
            before()
            self._began = time.monotonic()
            # The first image then waits for nothing but itself, and no page for its imports.
            import loracomp.drawing  # noqa: F401
            from loracomp.loading import open_base

            settings = self._settings
            self._pipe = open_base(settings.base, dtype=settings.dtype, device=settings.device)
        except LoracompError as error:
            self._error = public(error)
        except Exception:
            _log.exception("the base cannot be opened")
            self._error = "the base cannot be opened; the server's log says why"
        self._seconds = time.monotonic() - self._began
        self._opened.set()
