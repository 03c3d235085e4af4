"""Threads that take jobs from the queue: one per lane."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from loracomp.app.job import LANES, Job, State
from loracomp.app.jobs import Jobs
from loracomp.app.refusals import StoppedError, public
from loracomp.errors import LoracompError

_log = logging.getLogger(__name__)
_IDLE_S = 1.0
_ENDS: Mapping[str, State] = {"cancel": "canceled", "stop": "interrupted"}


class Control:
    """What a running job tells the queue, and how it hears that it has to end."""

    def __init__(self, job: Job, jobs: Jobs, quitting: threading.Event) -> None:
        self.job, self._jobs, self._quitting = job, jobs, quitting

    @property
    def preview(self) -> Path:
        """Where a picture of how far the job is may be put."""
        return self._jobs.preview_file(self.job.id)

    def check(self) -> None:
        """Raises :class:`StoppedError` where the job has to end, or the app does."""
        self._jobs.check(self.job.id)
        if self._quitting.is_set():
            raise StoppedError("quit")

    def step(self, done: int, total: int, eta_s: float | None = None, message: str = "") -> None:
        """Tells how far the job is; raises as :meth:`check` does."""
        self.check()
        self._jobs.note(self.job.id, done, total, eta_s, message)


Handler = Callable[[Job, Control], Mapping[str, Any]]


class Workers:
    """Runs handlers on jobs until it is told to stop.

    Args:
        jobs: The queue.
        handlers: What does a kind of job.
    """

    def __init__(self, jobs: Jobs, handlers: Mapping[str, Handler]) -> None:
        self._jobs, self._handlers = jobs, dict(handlers)
        self._quitting = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, lanes: Iterable[str] = tuple(dict.fromkeys(LANES.values()))) -> None:
        """Starts a thread per lane; what ran when the app ended goes on."""
        if not self._threads:
            self._jobs.recover()
        for lane in lanes:
            thread = threading.Thread(target=self._work, args=(lane,), name=f"loracomp-{lane}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, seconds: float = 30.0) -> None:
        """Lets running jobs end after their step; the next start goes on with them."""
        self._quitting.set()
        self._jobs.wake()
        for thread in self._threads:
            thread.join(seconds)

    def _work(self, lane: str) -> None:
        while not self._quitting.is_set():
            job = self._jobs.claim(lane)
            if job is None:
                self._jobs.wait(_IDLE_S)
                continue
            self._do(job)

    def _do(self, job: Job) -> None:
        try:
            result = self._handlers[job.kind](job, Control(job, self._jobs, self._quitting))
        except StoppedError as stopped:
            if stopped.cause != "quit":
                # One that is left running is queued again by the next start.
                self._jobs.finish(job.id, _ENDS[stopped.cause], stopped.result)
        except LoracompError as error:
            self._jobs.finish(job.id, "failed", error=public(error))
        except Exception as error:
            _log.exception("job %s failed", job.kind)
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the server's disk is full" if full else "an error in loracomp; the server's log says more"
            self._jobs.finish(job.id, "failed", error=why)
        else:
            self._jobs.finish(job.id, "done", result)
