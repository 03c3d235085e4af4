"""The library: the LoRA files of the configured folders, and those that ship."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from loracomp.app import thumbnails
from loracomp.app.adapter_rows import PAGE, SCHEMA, AdapterRow, Page, conditions, counted, order, read_row
from loracomp.app.database import Database
from loracomp.app.facts import Facts, read_facts
from loracomp.app.ground import CUSTOM, Ground
from loracomp.app.refusals import NotFoundError
from loracomp.app.settings import Settings
from loracomp.app.shipped import SHIPPED, shipped_facts
from loracomp.errors import UsageError

Progress = Callable[[int, int], None]


class Library:
    """Adapters by opaque id.

    What is known of a file is kept by path, size and time of change, so that files are opened once.

    Args:
        settings: The folders.
        database: Where it is kept.

    Attributes:
        came: Called when a file was noted outside of a look through the folders.
        ground: The base that the app draws on.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.thumbnails = settings.folder("thumbnails")
        self.scanning: tuple[int, int] | None = None
        self.scanned = 0.0
        self.came: Callable[[], object] = lambda: None
        self.ground = Ground(settings.base)
        database.schema(SCHEMA)

    def page(
        self,
        query: str = "",
        base: str = "",
        licence: str = "",
        tag: str = "",
        compatible_with: str = "",
        sort: str = "name",
        page: int = 1,
        size: int = PAGE,
        kind: str = "",
        usable: bool = False,
    ) -> Page:
        """Adapters whose name, triggers and tags have all words of a query.

        Args:
            query: Words, or parts of words.
            base: Base they are for.
            licence: Licence they claim.
            tag: Tag they claim.
            compatible_with: Id of an adapter, or a base, that they have to go together with.
            sort: ``name``, ``newest``, ``used`` or ``size``.
            page: Number of the page, from 1; one after the last gives the last.
            size: Rows of a page, at most 200.
            kind: ``style``, ``subject`` or ``accelerator``.
            usable: Whether to leave out those that cannot be read.

        Raises:
            UnknownNameError: No such order.
        """
        where, values = conditions(query, base, licence, tag, self._base_of(compatible_with), kind, usable)
        row = self.database.row(f"SELECT COUNT(*) AS n FROM adapters WHERE {where}", values)
        total = row["n"] if row else 0
        size = min(max(size, 1), 200)
        pages = max(1, -(-total // size))
        page = min(max(page, 1), pages)
        rows = self.database.rows(
            f"SELECT * FROM adapters WHERE {where} ORDER BY {order(sort)} LIMIT ? OFFSET ?",
            [*values, size, (page - 1) * size],
        )
        return Page(tuple(read_row(row, self.thumbnails) for row in rows), total, page, pages)

    def get(self, id_: str) -> AdapterRow:
        """An adapter; raises :class:`NotFoundError`."""
        return read_row(self._row(id_), self.thumbnails)

    def path(self, id_: str) -> Path:
        """The file of an adapter, inside a configured folder; raises :class:`NotFoundError`."""
        path = Path(self._row(id_)["path"])
        if not path.is_file() or not self._inside(path):
            raise NotFoundError("adapter")
        return path

    def thumbnail(self, id_: str) -> Path:
        """The thumbnail of an adapter; raises :class:`NotFoundError` where there is none."""
        found = self.get(id_).thumbnail
        if found is None or not found.is_file():
            raise NotFoundError("thumbnail")
        return found

    def facets(self) -> dict[str, dict[str, int]]:
        """How many adapters there are by base, licence, kind and tag, for filters."""
        found = {
            column: counted(
                self.database.rows(
                    f"SELECT {column} AS value, COUNT(*) AS n FROM adapters WHERE there = 1 GROUP BY {column}"
                    " ORDER BY n DESC LIMIT 100"
                )
            )
            for column in ("base", "licence", "kind")
        }
        tags = self.database.rows(
            "SELECT value, COUNT(*) AS n FROM adapters, json_each(tags) WHERE there = 1 GROUP BY value"
            " ORDER BY n DESC LIMIT 100"
        )
        return {**found, "tag": counted(tags)}

    def status(self) -> dict[str, Any]:
        """Number of adapters, and how far a look through the folders is."""
        row = self.database.row("SELECT COUNT(*) AS n FROM adapters WHERE there = 1")
        done, total = self.scanning or (0, 0)
        return {
            "adapters": row["n"] if row else 0,
            "scanning": self.scanning is not None,
            "done": done,
            "total": total,
        }

    def by_name(self, name: str) -> AdapterRow:
        """The adapter that a user calls ``name``: shipped name, title or file name, never a path.

        Raises:
            NotFoundError: None is called so.
        """
        rows = self.database.rows(
            "SELECT * FROM adapters WHERE there = 1 AND error = '' AND (name = ? OR path LIKE ? ESCAPE '\\')"
            " ORDER BY name != ?, own, id",
            (name, f"%/{name}.safetensors".replace("_", "\\_"), name),
        )
        found = [row for row in rows if name in (row["name"], Path(row["path"]).stem)]
        if not found:
            raise NotFoundError(f"adapter as {name!r}")
        return read_row(found[0], self.thumbnails)

    def by_content(self, digest: str = "", hash_: str = "", name: str = "") -> AdapterRow | None:
        """The adapter with this content, by its digest, else by its tensor hash, else by its name."""
        for column, value in (("digest", digest), ("hash", hash_)):
            if value:
                row = self.database.row(
                    f"SELECT * FROM adapters WHERE there = 1 AND {column} = ? ORDER BY own, id", (value,)
                )
                if row is not None:
                    return read_row(row, self.thumbnails)
        try:
            return self.by_name(name) if name else None
        except NotFoundError:
            return None

    def know(self, id_: str, digest: str) -> None:
        """Remembers the content and the use of an adapter that was just opened."""
        self.database.run("UPDATE adapters SET digest = ?, used = ? WHERE id = ?", (digest, time.time(), id_))

    def scan(self, progress: Progress | None = None) -> int:
        """Looks through the folders; files that have not changed are not opened. Gives how many were."""
        moved = self.ground.changed(self.database)
        known = {row["path"]: row for row in self.database.rows("SELECT * FROM adapters")}
        files = dict(self._files([SHIPPED, *self.settings.adapters]))
        kept = {path: row for path, row in known.items() if not moved or row["base"] not in ("", CUSTOM)}
        fresh = [path for path, status in files.items() if not _same(kept.get(str(path)), status)]
        gone = [path for path, row in known.items() if row["there"] and Path(path) not in files]
        with self.database.change():
            for path in gone:
                self.database.run("UPDATE adapters SET there = 0 WHERE path = ?", (path,))
        try:
            for done, path in enumerate(fresh):
                self.scanning = (done, len(fresh))
                if progress:
                    progress(done, len(fresh))
                self.note(path, files[path])
        finally:
            self.scanning, self.scanned = None, time.time()
        return len(fresh)

    def note_shipped(self) -> None:
        """Takes in what ships, where it is new: no header is read, so a gallery is soon there."""
        for path, status in self._files([SHIPPED]):
            if not _same(self.database.row("SELECT * FROM adapters WHERE path = ?", (str(path),)), status):
                self.note(path, status)

    def adopt(self, source: Path, stem: str) -> str:
        """Copies a file into the first folder, under a name that is free, and gives its id.

        Raises:
            UsageError: The name cannot be a file's name.
        """
        target = self.new_file(stem)
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)
        return self.note(target)

    def note(self, path: Path, status: os.stat_result | None = None) -> str:
        """Reads a file's header into the library and gives its id."""
        status = status or path.stat()
        facts = shipped_facts(path) or read_facts(path, self.ground.modules())
        own = not path.is_relative_to(SHIPPED)
        values = {**_columns(facts), "size": status.st_size, "changed": status.st_mtime_ns, "there": 1}
        sets = ", ".join(f"{name} = excluded.{name}" for name in (*values, "digest", "thumbnail"))
        values |= {"path": str(path), "id": secrets.token_hex(10), "own": own, "added": time.time()}
        self.database.run(
            f"INSERT INTO adapters ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"
            f" ON CONFLICT (path) DO UPDATE SET {sets}",
            list(values.values()),
        )
        row = self.database.row("SELECT id FROM adapters WHERE path = ?", (str(path),))
        id_ = str(row["id"]) if row else ""
        made = not facts.error and thumbnails.from_file(path, self.thumbnails / f"{id_}.webp")
        self.pictured(id_, "made" if made else "none")
        if self.scanning is None:
            self.came()
        return id_

    def pictured(self, id_: str, how: str) -> None:
        """Notes whether an adapter has a thumbnail: ``made``, ``none`` (to be drawn), ``never``."""
        self.database.run("UPDATE adapters SET thumbnail = ? WHERE id = ?", (how, id_))

    def unpictured(self, base: str) -> str | None:
        """The next adapter of a base that has no thumbnail yet."""
        row = self.database.row(
            "SELECT id FROM adapters WHERE there = 1 AND error = '' AND thumbnail = 'none' AND base = ?"
            " ORDER BY used DESC, added DESC LIMIT 1",
            (base,),
        )
        return None if row is None else str(row["id"])

    def new_file(self, stem: str) -> Path:
        """A path for a new adapter in the first folder, whose name is free.

        Raises:
            UsageError: The name cannot be a file's name.
        """
        if not stem or not stem[0].isalnum() or any(not (c.isalnum() or c in "-_. ") for c in stem):
            raise UsageError("a name needs letters, digits, spaces, - and _ alone")
        folder = self.settings.adapters[0]
        names = (stem[:80] + tail for tail in ("", *(f"-{number}" for number in range(2, 10_000))))
        return next(path for name in names if not (path := folder / f"{name}.safetensors").exists())

    def _row(self, id_: str) -> Any:
        row = self.database.row("SELECT * FROM adapters WHERE id = ? AND there = 1", (id_,))
        if row is None:
            raise NotFoundError("adapter")
        return row

    def _base_of(self, text: str) -> str:
        row = self.database.row("SELECT base FROM adapters WHERE id = ?", (text,)) if text else None
        return text if row is None else str(row["base"])

    def _inside(self, path: Path) -> bool:
        place = path.resolve()
        return any(place.is_relative_to(folder) for folder in (*self.settings.adapters, SHIPPED))

    def _files(self, folders: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
        """LoRA files; a link that leads out of the folders is not followed."""
        for folder in folders:
            for place, _, names in os.walk(folder):
                for name in sorted(names):
                    path = Path(place, name)
                    if not name.endswith(".safetensors") or name.startswith(".") or not self._inside(path):
                        continue
                    try:
                        yield path, path.stat()
                    except OSError:
                        continue


def _same(row: Any, status: os.stat_result) -> bool:
    seen = row is not None and row["there"]
    return bool(seen and (row["size"], row["changed"]) == (status.st_size, status.st_mtime_ns))


def _columns(facts: Facts) -> dict[str, Any]:
    return {
        "name": facts.name, "base": facts.base, "kind": facts.kind, "licence": facts.licence,
        "triggers": json.dumps(facts.triggers), "tags": json.dumps(facts.tags), "rank": facts.rank,
        "hash": facts.hash, "words": facts.words, "error": facts.error,
    }  # fmt: skip
