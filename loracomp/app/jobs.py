"""The queue: one table of jobs, fair between users, that outlives the app."""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loracomp.app.database import Database
from loracomp.app.job import LANES, LIVE, PAUSABLE, SYSTEM, Job, State, read_job, turns
from loracomp.app.refusals import LimitError, NotFoundError, StoppedError
from loracomp.app.settings import Limits
from loracomp.errors import UsageError

_RESTARTS = 3
_KEEP_S = 30 * 86400.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, lane TEXT NOT NULL,
  user TEXT NOT NULL, title TEXT NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL,
  wish TEXT NOT NULL DEFAULT '', step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, eta REAL,
  message TEXT NOT NULL DEFAULT '', result TEXT NOT NULL DEFAULT '{}', error TEXT NOT NULL DEFAULT '',
  created REAL NOT NULL, started REAL, finished REAL, restarts INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, lane, number);
CREATE INDEX IF NOT EXISTS jobs_by_user ON jobs (user, number);
CREATE INDEX IF NOT EXISTS jobs_by_start ON jobs (lane, user, started);
"""


class Jobs:
    """All jobs.

    Args:
        database: Where they are kept.
        limits: How many a user may have.
        previews: Folder of their pictures.
    """

    def __init__(self, database: Database, limits: Limits, previews: Path) -> None:
        self._database, self._limits, self._previews = database, limits, previews
        self._news = threading.Condition()
        self._wishes: dict[str, str] = {}
        database.schema(_SCHEMA)

    def submit(self, kind: str, request: Mapping[str, Any], user: str, title: str = "") -> str:
        """Queues a job and gives its id.

        Raises:
            LimitError: The user, or all of them, have as many unfinished jobs as they may.
        """
        id_ = secrets.token_urlsafe(18)
        with self._database.change():
            self._check_limits(user)
            self._database.run(
                "INSERT INTO jobs (id, kind, lane, user, title, request, state, created)"
                " VALUES (?, ?, ?, ?, ?, ?, 'queued', ?)",
                (id_, kind, LANES[kind], user, title or kind, json.dumps(dict(request)), time.time()),
            )
        self._tell()
        return id_

    def submit_once(self, kind: str, title: str) -> None:
        """Queues a job of the app itself, unless one of its kind waits already or the queue is full."""
        same = "SELECT 1 FROM jobs WHERE kind = ? AND user = ? AND state = 'queued'"
        if self._database.row(same, (kind, SYSTEM)) is None:
            with contextlib.suppress(LimitError):
                self.submit(kind, {}, SYSTEM, title)

    def any_live(self, kind: str) -> bool:
        """Whether a job of a kind waits or runs, whosever it is."""
        return (
            self._database.row(f"SELECT 1 FROM jobs WHERE kind = ? AND state IN {LIVE}", (kind,)) is not None
        )

    def get(self, id_: str, user: str) -> Job:
        """A user's job; raises :class:`NotFoundError` for anything else."""
        row = self._database.row("SELECT * FROM jobs WHERE id = ? AND user = ?", (id_, user))
        if row is None:
            raise NotFoundError("job")
        return self._job(row, self._order(row["lane"]) if row["state"] == "queued" else [])

    def list(self, user: str, limit: int = 50, kind: str = "") -> list[Job]:
        """A user's jobs, newest first."""
        rows = self._database.rows(
            "SELECT * FROM jobs WHERE user = ? AND (? = '' OR kind = ?) ORDER BY number DESC LIMIT ?",
            (user, kind, kind, limit),
        )
        orders = {lane: self._order(lane) for lane in {r["lane"] for r in rows if r["state"] == "queued"}}
        return [self._job(row, orders.get(row["lane"], [])) for row in rows]

    def cancel(self, id_: str, user: str) -> Job:
        """Ends a job: at once where it waits, within a step where it runs; one that is over stays so."""
        return self._wish(id_, user, "cancel", "canceled")

    def stop(self, id_: str, user: str) -> Job:
        """Ends a training run after its step and keeps its state, so that :meth:`resume` goes on.

        Raises :class:`UsageError` for other kinds of jobs.
        """
        if self.get(id_, user).kind not in PAUSABLE:
            raise UsageError("only training can be stopped and gone on with; cancel this job instead")
        return self._wish(id_, user, "stop", "interrupted")

    def resume(self, id_: str, user: str) -> Job:
        """Queues an interrupted job again; raises :class:`UsageError` where it is not interrupted."""
        self.get(id_, user)
        changed = self._database.run(
            "UPDATE jobs SET state = 'queued', wish = '', error = '', finished = NULL, restarts = 0"
            " WHERE id = ? AND user = ? AND state = 'interrupted'",
            (id_, user),
        )
        if not changed:
            raise UsageError("only a job that was stopped can be gone on with; start it again instead")
        self._tell()
        return self.get(id_, user)

    def wait(self, seconds: float) -> None:
        """Sleeps until something is queued or ends, or for so long."""
        with self._news:
            self._news.wait(seconds)

    def wake(self) -> None:
        """Ends every :meth:`wait`."""
        self._tell()

    # What follows is for workers, which see all users' jobs.

    def recover(self) -> None:
        """Queues again what ran when the app ended; what brought it down thrice has failed."""
        why = "the app ended each time this ran; ask for less"
        with self._database.change():
            self._database.run("DELETE FROM jobs WHERE finished < ?", (time.time() - _KEEP_S,))
            self._database.run(
                "UPDATE jobs SET state = 'failed', finished = ?, error = ? WHERE state = 'running' AND"
                " restarts >= ? AND lane != 'train'",
                (time.time(), why, _RESTARTS),
            )
            self._database.run(
                "UPDATE jobs SET state = 'queued', restarts = restarts + 1 WHERE state = 'running'"
            )
            wishes = self._database.rows("SELECT id, wish FROM jobs WHERE state = 'queued' AND wish != ''")
        self._wishes |= {row["id"]: row["wish"] for row in wishes}
        self._tell()

    def claim(self, lane: str) -> Job | None:
        """The next job of a lane, now running: what was interrupted first, then users in turn."""
        with self._database.change():
            order = self._order(lane)
            if not order:
                return None
            self._database.run(
                "UPDATE jobs SET state = 'running', started = ?, step = 0, eta = NULL, message = ''"
                " WHERE id = ?",
                (time.time(), order[0]),
            )
            row = self._database.row("SELECT * FROM jobs WHERE id = ?", (order[0],))
        return None if row is None else self._job(row, [])

    def note(self, id_: str, step: int, steps: int, eta_s: float | None = None, message: str = "") -> None:
        """Writes down how far a running job is; raises :class:`StoppedError` where it has to end."""
        self.check(id_)
        self._database.run(
            "UPDATE jobs SET step = ?, steps = ?, eta = ?, message = ? WHERE id = ?",
            (step, steps, eta_s, message, id_),
        )

    def check(self, id_: str) -> None:
        """Raises :class:`StoppedError` where a running job has to end."""
        if cause := self._wishes.get(id_):
            raise StoppedError(cause)

    def finish(
        self, id_: str, state: State, result: Mapping[str, Any] | None = None, error: str = ""
    ) -> None:
        """Ends a running job."""
        self._database.run(
            "UPDATE jobs SET state = ?, result = ?, error = ?, finished = ?, message = '', wish = ''"
            " WHERE id = ?",
            (state, json.dumps(dict(result or {})), error, time.time(), id_),
        )
        self._database.run("DELETE FROM jobs WHERE id = ? AND user = ?", (id_, SYSTEM))
        self._wishes.pop(id_, None)
        self.preview_file(id_).unlink(missing_ok=True)
        self._tell()

    def preview_file(self, id_: str) -> Path:
        """Where the picture of a running job lies."""
        return self._previews / f"{id_}.webp"

    def _wish(self, id_: str, user: str, wish: str, state: State) -> Job:
        with self._database.change():
            waiting = self._database.run(
                "UPDATE jobs SET state = ?, finished = ? WHERE id = ? AND user = ? AND state = 'queued'"
                " AND restarts = 0",
                (state, time.time(), id_, user),
            )
            if not waiting and self.get(id_, user).live:
                # One that ran before may have a process of its own, which its worker has to end.
                self._wishes[id_] = wish
                self._database.run("UPDATE jobs SET wish = ? WHERE id = ?", (wish, id_))
        self._tell()
        return self.get(id_, user)

    def _check_limits(self, user: str) -> None:
        rows = self._database.rows(
            "SELECT user, COUNT(*) AS n FROM jobs WHERE state IN ('queued', 'running') GROUP BY user"
        )
        counts = {row["user"]: row["n"] for row in rows}
        if user != SYSTEM and counts.get(user, 0) >= self._limits.queued:
            raise LimitError(f"{counts[user]} of your jobs are unfinished already; wait for one or cancel it")
        if sum(counts.values()) >= self._limits.queued_in_all:
            raise LimitError("the queue is full; try again in a minute")

    def _order(self, lane: str) -> Sequence[str]:
        waiting = self._database.rows(
            "SELECT id, user, restarts FROM jobs WHERE state = 'queued' AND lane = ? ORDER BY number", (lane,)
        )
        if not waiting:
            return []
        served = self._database.rows(
            "SELECT user, MAX(started) AS at FROM jobs WHERE lane = ? AND started IS NOT NULL GROUP BY user",
            (lane,),
        )
        jobs = [(row["id"], row["user"], row["restarts"] > 0) for row in waiting]
        return turns(jobs, {row["user"]: row["at"] for row in served})

    def _job(self, row: sqlite3.Row, order: Sequence[str]) -> Job:
        place = order.index(row["id"]) if row["id"] in order else None
        return read_job(row, place, self.preview_file(row["id"]), time.time())

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()
