"""A collection of adapters in a folder: feature shards, a journal, text probes, and the index over them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from loracomp.bases import get_base
from loracomp.errors import FormatError, ResourceError, UsageError
from loracomp.formats import shipped_folder
from loracomp.retrieval.bank import ProbeBank, load_bank, make_bank
from loracomp.retrieval.filters import EVERYTHING, Compare
from loracomp.retrieval.index import AdapterIndex, Row, open_index
from loracomp.retrieval.journal import Journal
from loracomp.retrieval.making import Encoder, encoder_name, rows
from loracomp.retrieval.shards import FeatureStore, write_whole

FORMAT = 1
_SETTINGS = "collection.json"
_ROWS = 4096


class Collection:
    """An index with everything that it is made from.

    Args:
        folder: The collection's folder.
        server: Address of a PostgreSQL server that holds the index; in the folder where None.
        create: Whether to make it where it does not exist.
        encoders: Learned encoders by base.
        indexed: Whether rows are kept for searching. Without them builds keep features and journal alone,
            which is all that training reads, and need no database; a later build with them adds the rows.

    Raises:
        FormatError: There is no collection, or one of another version.
        ResourceError: The index cannot be reached.
        UsageError: The collection's index is on a server, and none is named, or the other way round.
    """

    def __init__(
        self,
        folder: Path,
        server: str | None = None,
        *,
        create: bool = False,
        encoders: Mapping[str, Encoder] | None = None,
        indexed: bool = True,
    ) -> None:
        self.folder = folder
        settings = folder / _SETTINGS
        if not settings.is_file():
            if not create:
                raise FormatError(f"{folder}: no index; make one: loracomp index build DIR --index {folder}")
            if folder.exists() and any(folder.iterdir()):
                raise UsageError(f"{folder}: not an index, and not empty; name a new folder with --index")
            folder.mkdir(parents=True, exist_ok=True)
            engine = "postgres" if server else "lance"
            write_whole(settings, json.dumps({"format": FORMAT, "engine": engine}).encode())
        engine = _engine(settings)
        if (engine == "postgres") != bool(server):
            where = (
                "on a server; name it with --server" if engine == "postgres" else "here; leave --server out"
            )
            raise UsageError(f"{folder}: its index is {where}")
        self.indexed = indexed
        self._address = server or str(folder / "lance")
        if indexed:
            _ = self.index
        self.encoders: dict[str, Encoder] = dict(encoders or {})

    @cached_property
    def index(self) -> AdapterIndex:
        """The rows."""
        return open_index(self._address)

    @cached_property
    def store(self) -> FeatureStore:
        """The feature shards."""
        return FeatureStore(self.folder / "features")

    @cached_property
    def journal(self) -> Journal:
        """Which files have been seen."""
        return Journal(self.folder / "journal.jsonl")

    @cached_property
    def banks(self) -> dict[str, ProbeBank]:
        """Text probes by base."""
        return {base: load_bank(path) for base, path in self.bank_files().items()}

    def bank_files(self) -> dict[str, Path]:
        """Files of the text probes by base."""
        return {path.stem: path for path in sorted((self.folder / "banks").glob("*.safetensors"))}

    def add_bank(self, base: str, folder: Path | None = None) -> ProbeBank | None:
        """The base's text probes, made now where they are missing; None where its weights are not at hand.

        Raises:
            ResourceError: ``folder`` is given and has no text encoder or weights.
            UnknownNameError: No such base.
        """
        get_base(base)
        if base in self.banks and folder is None:
            return self.banks[base]
        source = folder or shipped_folder(base)
        if source is None:
            return None
        bank = make_bank(base, source)
        place = self.folder / "banks"
        place.mkdir(exist_ok=True)
        part = place / f"{base}.part"
        bank.save(part)
        os.replace(part, place / f"{base}.safetensors")
        self.banks[base] = load_bank(place / f"{base}.safetensors")
        return self.banks[base]

    def fresh(self, base: str, drawn: bool = False) -> str:
        """Name of what rows of a base are made with now, of adapters that were drawn with or not."""
        return encoder_name(base, self.banks, self.encoders, drawn)

    def removed(self) -> set[str]:
        """Ids that no file stands for: taken out on purpose, replaced, or cut off before they were noted."""
        return set(self.store.latest()) - {seen.id for seen in self.journal.seen.values()}

    def pictures(self, id_: str) -> Tensor | None:
        """What an adapter draws unasked, (8, 3, 64, 64), uint8; None where it was not drawn with."""
        found = self.store.pictures([id_]).get(id_)
        return found() if found else None

    def synchronize(self, removed: set[str] | None = None) -> int:
        """Brings the index up to the shards: adds what it lacks, renews what is out of date.

        Args:
            removed: Ids that were taken out on purpose.

        Returns:
            Number of rows written.
        """
        there = {row["id"]: row for row in self.index.scan(columns=("id", "encoder", "quarantine", "added"))}
        latest = self.store.latest()
        stale = {
            id_
            for id_, (shard, row) in latest.items()
            if id_ not in (removed or ())
            and (id_ not in there or there[id_]["encoder"] != self.fresh(shard.base, row in shard.drawn))
        }
        held: list[Row] = []
        for shard, found in self.store.rows(stale):
            held += rows(found, shard.base, self.banks, self.encoders, there)
            if len(held) >= _ROWS:
                self.index.upsert(held)
                held = []
        if held:
            self.index.upsert(held)
        return len(stale)

    def find(self, what: str) -> Row:
        """The row that an id, the start of one, a path or a name means.

        Raises:
            UsageError: None, or several.
        """
        filters = [Compare("id", "=", what), Compare("path", "=", str(Path(what).absolute()))]
        filters.append(Compare("name", "=", what))
        for where in filters:
            found = list(self.index.scan(where))
            if len(found) == 1:
                return found[0]
            if found:
                some = ", ".join(row["id"][:12] for row in found[:5])
                raise UsageError(f"{what}: {len(found)} adapters have that name ({some}); give the id")
        if len(what) >= 6:
            near = [row for row in self.index.scan(EVERYTHING, ("id",)) if row["id"].startswith(what)]
            if len(near) == 1:
                return next(self.index.scan(Compare("id", "=", near[0]["id"])))
        raise UsageError(f"{what}: no such adapter in the index; search for it, or build the index anew")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the collection for one writer; raises :class:`ResourceError` where another one has it."""
        import fcntl

        with open(self.folder / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ResourceError(
                    f"{self.folder}: another build is under way; wait until it ends"
                ) from None
            yield

    def close(self) -> None:
        """Lets go of the index."""
        if "index" in vars(self):
            self.index.close()


def _engine(settings: Path) -> str:
    try:
        said: Any = json.loads(settings.read_text())
        if said["format"] == FORMAT:
            return str(said["engine"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{settings}: damaged ({error}); build the index anew in another folder") from error
    raise FormatError(f"{settings}: of another version; build the index anew in another folder")
