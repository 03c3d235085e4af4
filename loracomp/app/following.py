"""Following a long run from the queue: start it or find it alive, hear it, end it as its job is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loracomp.app.job import Job
from loracomp.app.processes import LongRun
from loracomp.app.refusals import StoppedError, public
from loracomp.app.workers import Control
from loracomp.errors import TrainingError

_POLL_S = 0.2
_GRACE_S = 120.0
_TRIES = 3
_INTERRUPTED = 130

Events = Mapping[str, Mapping[str, Any]]
"""The latest event of each kind."""


def begin(folder: Path, job: Job, name: str) -> tuple[LongRun, Path]:
    """The run of a job in a folder that nobody else on this machine reads, and the file that it makes."""
    own = folder / job.id
    own.mkdir(exist_ok=True, mode=0o700)
    return LongRun(own), own / f"{name}.safetensors"


def follow(
    run: LongRun,
    control: Control,
    command: Callable[[], Sequence[str]],
    over: Callable[[], bool],
    hear: Callable[[Events], None],
    discard: Callable[[], None],
) -> None:
    """Returns when a run is over; one that lives already is adopted, one that died goes on.

    Args:
        run: The run.
        control: Of its job.
        command: What starts it, or goes on with it.
        over: Whether it has left what it was to make.
        hear: Told of what it says beside its steps.
        discard: Removes what an unfinished run keeps.

    Raises:
        StoppedError: The job was told to end: canceled runs are killed, stopped ones save first, and
            when the app ends they live on.
        TrainingError: What the run said before it ended, or that it said nothing.
    """
    tries = 0
    while run.alive or not over():
        if not run.alive:
            if tries == _TRIES:
                raise TrainingError("the process ended without a word, perhaps for its memory; ask for less")
            tries += 1
            run.start(command())
        _watch(run, control, hear, discard)
        failure = None if run.result() else run.failure()
        if failure is not None and failure["exit_code"] != _INTERRUPTED:
            raise TrainingError(public(str(failure.get("error", "the run failed"))))


def _watch(
    run: LongRun, control: Control, hear: Callable[[Events], None], discard: Callable[[], None]
) -> None:
    """Until the process ends."""
    try:
        while True:
            alive = run.alive
            latest = {str(event.get("event")): event for event in run.news()}
            if step := latest.get("step"):
                said = f"loss {step['loss']:.4f}"
                control.step(step["step"], step["steps"], float(step["eta_s"]), said)
            hear(latest)
            control.check()
            if not alive:
                return
            time.sleep(_POLL_S)
    except StoppedError as stopped:
        if stopped.cause == "cancel":
            run.kill()
            discard()
        elif stopped.cause == "stop":
            run.interrupt()
            run.alive_or_wait(_GRACE_S)
            run.kill()
        raise
