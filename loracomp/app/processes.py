"""Long runs in processes of their own, which outlive the app that started them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[2]
_POLL_S = 0.05
_CHILDREN: dict[Path, subprocess.Popen[bytes]] = {}
"""What this app started, by folder; a process that it did not start is not its child."""


class LongRun:
    """One ``loracomp`` command and what it leaves in a folder.

    The process holds a lock on a file there for as long as it lives, so that a later app can tell it from
    another process with the same number. Its events are lines of JSON in ``events.jsonl``, its result one
    JSON object in ``result.json``.

    Args:
        folder: The run's folder; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events = folder / "events.jsonl"
        self._lock, self._number = folder / "alive", folder / "pid"
        self._printed = folder / "result.json"
        self._told = 0

    def start(self, command: Sequence[str]) -> None:
        """Starts ``loracomp COMMAND`` in a session of its own; what earlier starts said is kept."""
        self.alive_or_wait()
        path = os.pathsep.join(filter(None, (str(_PACKAGE), os.environ.get("PYTHONPATH", ""))))
        with (
            self._lock.open("wb") as lock,
            self.events.open("ab") as said,
            self._printed.open("wb") as result,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(
                [sys.executable, "-m", "loracomp", *command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=said,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            )
        self._number.write_text(str(process.pid))
        _CHILDREN[self.folder] = process

    @property
    def alive(self) -> bool:
        """Whether its process lives, whoever started it."""
        if self.folder in _CHILDREN:
            _CHILDREN[self.folder].poll()  # a child that has ended stays a zombie until it is asked
        try:
            with self._lock.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def alive_or_wait(self, seconds: float = 5.0) -> None:
        """Gives a process that is about to end so long to do so."""
        end = time.monotonic() + seconds
        while self.alive and time.monotonic() < end:
            time.sleep(_POLL_S)

    def news(self) -> Iterator[dict[str, Any]]:
        """Events since the last call; lines that are none are left out."""
        if not self.events.is_file():
            return
        with self.events.open("rb") as file:
            file.seek(self._told)
            while line := file.readline():
                if not line.endswith(b"\n"):
                    break
                self._told += len(line)
                if event := _object(line):
                    yield event

    def all_events(self) -> Iterator[dict[str, Any]]:
        """Events from the beginning."""
        return LongRun(self.folder).news()

    def result(self) -> dict[str, Any] | None:
        """What it printed when it was done; None where it was not."""
        return _object(self._printed.read_bytes()) if self._printed.is_file() else None

    def facts(self, *names: str) -> dict[str, Any]:
        """Those of the named values that its result has."""
        found = self.result() or {}
        return {name: found[name] for name in names if name in found}

    def failure(self) -> dict[str, Any] | None:
        """Error and exit code of its last words; None where it had none."""
        found = None
        for event in self.all_events():
            found = event if "exit_code" in event else None if event.get("event") == "start" else found
        return found

    def interrupt(self) -> None:
        """Asks it to finish its step, to save and to end."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Ends it at once."""
        self._signal(signal.SIGKILL)
        self.alive_or_wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.alive and self._number.is_file():
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(int(self._number.read_text()), number)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
