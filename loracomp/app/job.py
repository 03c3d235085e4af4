"""A job as a value, and whose turn it is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

State = Literal["queued", "running", "done", "failed", "canceled", "interrupted"]
LIVE = ("queued", "running")
LANES: Mapping[str, str] = {
    "generate": "draw",
    "grid": "draw",
    "thumbnails": "draw",
    "index": "read",
    "scan": "read",
    "convert": "read",
    "doctor": "read",
    "train": "train",
    "mark": "train",
}
"""Which worker does a kind of job: one draws, one reads files, one looks after long runs."""
READING = LANES["scan"]
"""The worker that needs no base model."""
PAUSABLE = ("train", "mark")
SYSTEM = ""
"""The user of what the app does for itself; it waits for everybody else."""


@dataclass(frozen=True)
class Job:
    """A job as its user sees it.

    Attributes:
        id: Its name; nobody guesses it.
        kind: A key of :data:`LANES`.
        user: Whose it is.
        title: One line that says what it does.
        request: What was asked for.
        state: Where it stands; ``interrupted`` can be gone on with.
        position: Jobs before it, 0 for the next one; None unless it is queued.
        step: Steps done.
        steps: Steps in all; 0 while that is not known.
        eta_s: Seconds left; None while nobody knows.
        message: What it is doing.
        preview: A picture of how far it is; None where there is none.
        result: What came out.
        error: What went wrong, in one line.
        created: Unix time in seconds.
        started: The same of its start.
        finished: The same of its end.
    """

    id: str
    kind: str
    user: str
    title: str
    request: dict[str, Any]
    state: State
    position: int | None
    step: int
    steps: int
    eta_s: float | None
    message: str
    preview: Path | None
    result: dict[str, Any]
    error: str
    created: float
    started: float | None
    finished: float | None

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.state in LIVE

    def to_dict(self) -> dict[str, Any]:
        """The job as plain JSON values; the preview as whether there is one."""
        return asdict(self) | {"preview": self.preview is not None}


def read_job(row: sqlite3.Row, position: int | None, preview: Path, now: float) -> Job:
    """The job in a row of the table."""
    running, step, steps = row["state"] == "running", row["step"], row["steps"]
    left = row["eta"]
    if running and left is None and step and steps:
        left = (now - row["started"]) / step * (steps - step)
    return Job(
        id=row["id"],
        kind=row["kind"],
        user=row["user"],
        title=row["title"],
        request=json.loads(row["request"]),
        state=row["state"],
        position=position,
        step=step,
        steps=steps,
        eta_s=left if running else None,
        message=row["message"],
        preview=preview if preview.is_file() else None,
        result=json.loads(row["result"]),
        error=row["error"],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
    )


def turns(waiting: Sequence[tuple[str, str, bool]], served: Mapping[str, float]) -> list[str]:
    """Ids of waiting jobs in the order in which they will run.

    One job of each user, then a second one of each, and so on; who was served longest ago begins.

    Args:
        waiting: (id, user, whether it ran before) in the order of submission.
        served: When a user's latest job started, by user; who is not there was never served.
    """
    first = [id_ for id_, _, before in waiting if before]
    lists: dict[str, list[str]] = {}
    for id_, user, before in waiting:
        if not before:
            lists.setdefault(user, []).append(id_)
    system = lists.pop(SYSTEM, [])
    # Sorting is stable: of those never served, who came first begins.
    users = sorted(lists, key=lambda user: served.get(user, 0.0))
    rounds = zip_longest(*(lists[user] for user in users))
    return [*first, *(id_ for one in rounds for id_ in one if id_ is not None), *system]
