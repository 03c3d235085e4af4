"""Adapters of the library as rows: what is asked for, and what comes back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loracomp.errors import UnknownNameError

SCHEMA = """
CREATE TABLE IF NOT EXISTS adapters (
  id TEXT PRIMARY KEY, path TEXT UNIQUE NOT NULL, there INTEGER NOT NULL DEFAULT 1, own INTEGER NOT NULL,
  size INTEGER NOT NULL, changed INTEGER NOT NULL, added REAL NOT NULL, used REAL NOT NULL DEFAULT 0,
  name TEXT NOT NULL, base TEXT NOT NULL, kind TEXT NOT NULL, licence TEXT NOT NULL, triggers TEXT NOT NULL,
  tags TEXT NOT NULL, rank INTEGER NOT NULL, hash TEXT NOT NULL, words TEXT NOT NULL, error TEXT NOT NULL,
  digest TEXT NOT NULL DEFAULT '', thumbnail TEXT NOT NULL DEFAULT '', weight REAL NOT NULL DEFAULT 1.0,
  low REAL NOT NULL DEFAULT -1.0, high REAL NOT NULL DEFAULT 2.0);
CREATE INDEX IF NOT EXISTS adapters_by_base ON adapters (there, base, name);
"""
SORTS = {
    "name": "name COLLATE NOCASE, id",
    "newest": "added DESC, id",
    "used": "used DESC, name COLLATE NOCASE, id",
    "size": "size DESC, id",
}
PAGE = 24


@dataclass(frozen=True)
class AdapterRow:
    """An adapter as a gallery shows it; nothing in it says where its file lies.

    Attributes:
        id: What it is asked for by.
        name: What it calls itself.
        base: Base that it fits; empty where it cannot be read.
        kind: ``style``, ``subject``, ``accelerator`` or empty.
        licence: As claimed.
        triggers: Words that call it.
        tags: As claimed.
        rank: Largest rank.
        bytes: Size of its file.
        weight: Strength to begin with.
        low: Least strength to offer.
        high: Largest strength to offer.
        thumbnail: WebP file of at most 256 px; None while there is none.
        editable: Whether its header may be changed here.
        error: Why it cannot be used; empty where it can.
        added: Unix time in seconds at which the library first saw it.
        score: How well it answers a search; None where nothing was scored.
        why: What the score is made of.
    """

    id: str
    name: str
    base: str
    kind: str
    licence: str
    triggers: tuple[str, ...]
    tags: tuple[str, ...]
    rank: int
    bytes: int
    weight: float
    low: float
    high: float
    thumbnail: Path | None
    editable: bool
    error: str
    added: float
    score: float | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON values; the thumbnail as whether there is one."""
        return asdict(self) | {"thumbnail": self.thumbnail is not None}


@dataclass(frozen=True)
class Page:
    """Some rows of many.

    Attributes:
        rows: The rows of this page.
        total: Rows in all.
        page: Number of this page, from 1.
        pages: Number of pages, at least 1.
        notes: What should be known of the answer.
    """

    rows: tuple[AdapterRow, ...]
    total: int
    page: int
    pages: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The page as plain JSON values."""
        return {**vars(self), "rows": [row.to_dict() for row in self.rows], "notes": list(self.notes)}


def read_row(row: sqlite3.Row, thumbnails: Path) -> AdapterRow:
    """The adapter in a row of the table."""
    return AdapterRow(
        id=row["id"],
        name=row["name"],
        base=row["base"],
        kind=row["kind"],
        licence=row["licence"],
        triggers=tuple(json.loads(row["triggers"])),
        tags=tuple(json.loads(row["tags"])),
        rank=row["rank"],
        bytes=row["size"],
        weight=row["weight"],
        low=row["low"],
        high=row["high"],
        thumbnail=thumbnails / f"{row['id']}.webp" if row["thumbnail"] == "made" else None,
        editable=bool(row["own"]),
        error=row["error"],
        added=row["added"],
    )


def conditions(
    query: str, base: str, licence: str, tag: str, compatible_with: str, kind: str, usable: bool
) -> tuple[str, list[Any]]:
    """What follows WHERE, and its values."""
    parts, values = ["there = 1"], []
    for word in query.lower().split()[:12]:
        parts.append("words LIKE ? ESCAPE '\\'")
        values.append(f"%{_plain(word)}%")
    for column, value in (("base", base), ("base", compatible_with), ("licence", licence), ("kind", kind)):
        if value:
            parts.append(f"{column} = ?")
            values.append(value)
    if tag:
        parts.append("tags LIKE ? ESCAPE '\\'")
        values.append(f"%{_plain(json.dumps(tag))}%")
    if usable or compatible_with:
        parts.append("error = ''")
    return " AND ".join(parts), values


def order(sort: str) -> str:
    """What follows ORDER BY; raises :class:`UnknownNameError`."""
    if sort not in SORTS:
        raise UnknownNameError("order", sort, SORTS)
    return SORTS[sort]


def counted(rows: Sequence[sqlite3.Row]) -> dict[str, int]:
    """Counts by value of rows (value, n), without the empty value."""
    return {row["value"]: row["n"] for row in rows if row["value"]}


def _plain(text: str) -> str:
    for mark in "\\%_":
        text = text.replace(mark, f"\\{mark}")
    return text
