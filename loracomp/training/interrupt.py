"""Ctrl-C as a request: once finishes the step and saves, twice stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from loracomp.errors import TrainingError


class InterruptedRunError(TrainingError):
    """A run that stopped because it was asked to, after saving its state."""

    exit_code = 130

    def __init__(self, step: int, steps: int, out: Path) -> None:
        self.step = step
        super().__init__(
            f"stopped after step {step} of {steps}, saved; go on with: loracomp train resume {out}"
        )


class InterruptedManyError(TrainingError):
    """A run of many adapters that stopped because it was asked to, after saving its state."""

    exit_code = 130

    def __init__(self, done: int, adapters: int, out: Path) -> None:
        super().__init__(
            f"{out}: stopped with {done} of {adapters} adapters done, saved; the same command goes on"
        )


@contextmanager
def ctrl_c(notify: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed.

    The second press does what the first one would have done outside, which ends the program. Only
    the main thread can use this.

    Args:
        notify: Called at the first press.
    """
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed and callable(before):
            before(number, frame)
        pressed = True
        notify()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
