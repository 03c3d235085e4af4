"""One SQLite file that threads share."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loracomp.errors import FormatError


class Database:
    """A connection behind a lock; what is committed survives a crash of the app.

    Args:
        path: The file, made where it is missing; its folder has to be there.

    Raises:
        FormatError: It is no database, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(
                path, check_same_thread=False, isolation_level=None, timeout=30
            )
        except sqlite3.Error as error:
            raise FormatError(f"{path}: cannot be opened ({error}); choose another folder") from None
        try:
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            path.chmod(0o600)
        except (sqlite3.DatabaseError, OSError) as error:
            self._connection.close()
            raise FormatError(f"{path}: not the app's database ({error}); move it away") from None

    def schema(self, script: str) -> None:
        """Makes tables where they are missing."""
        with self._lock:
            self._connection.executescript(script)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a query; None where there is none."""
        with self._lock:
            return self._connection.execute(query, values).fetchone()

    def run(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Number of rows that a statement changed."""
        with self._lock:
            return self._connection.execute(statement, values).rowcount

    @contextmanager
    def change(self) -> Iterator[None]:
        """Statements that take effect together, or not at all."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            self._connection.close()
