"""Drawing with the adapters of a collection: pictures for those that have none, from wherever it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import FormatError
from loracomp.formats import load
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.drawn import WORDS, Artist, draw_probes
from loracomp.retrieval.encoding import Encoded, Facts
from loracomp.retrieval.filters import Compare
from loracomp.retrieval.journal import Seen
from loracomp.retrieval.making import rows

Progress = Callable[[int, int], None]


@dataclass
class DrawReport:
    """What was drawn.

    Attributes:
        drawn: Adapters that have pictures now and had none.
        failed: Files that could not be drawn with, and why; the next run tries them again.
    """

    drawn: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dict(vars(self))


def undrawn(collection: Collection) -> dict[str, list[str]]:
    """Ids of the adapters without pictures, by base."""
    there = collection.store.pictures()
    gone = collection.removed()
    found: dict[str, list[str]] = {}
    for id_, (shard, _) in collection.store.latest().items():
        if id_ not in there and id_ not in gone:
            found.setdefault(shard.base, []).append(id_)
    return found


def draw(
    collection: Collection, artist: Artist, *, group: int | None = None, progress: Progress | None = None
) -> DrawReport:
    """Draws with all adapters of a base that have no pictures yet.

    Pictures are kept group by group, as features in new shards, and the index's rows are renewed with them;
    whatever stops this loses at most the group at hand, and the next call goes on. An adapter that cannot be
    drawn with is reported and stops no other.

    Args:
        collection: The index.
        artist: Draws with adapters of one base; those are taken.
        group: Adapters after which pictures are kept; as many as the artist draws with at once where None.
        progress: Called with adapters done and adapters in all, when those done are on the disk.

    Raises:
        ResourceError: A build is under way.
    """
    report = DrawReport()
    group = group or max(1, artist.batch // len(WORDS))
    with collection.writing():
        if collection.indexed:
            collection.synchronize(collection.removed())
        todo = undrawn(collection).get(artist.base, [])
        files: dict[str, list[Seen]] = {}
        for seen in collection.journal.seen.values():
            files.setdefault(seen.id, []).append(seen)
        for start in range(0, len(todo), group):
            ids = todo[start : start + group]
            _keep(collection, _completed(collection, artist, ids, files, report))
            if progress:
                progress(start + len(ids), len(todo))
        if collection.indexed and report.drawn:
            collection.index.optimize()
    return report


def _completed(
    collection: Collection,
    artist: Artist,
    ids: Sequence[str],
    files: dict[str, list[Seen]],
    report: DrawReport,
) -> dict[str, list[Encoded]]:
    """Rows with their pictures, by digest of the text probes that their features were made with."""
    found: list[tuple[str, Encoded]] = []
    adapters: list[Adapter] = []
    for shard, encoded in collection.store.rows(set(ids)):
        for item in encoded:
            try:
                adapters.append(_opened(item.facts, files.get(item.facts.id, ())))
                found.append((shard.bank, item))
            except FormatError as error:
                report.failed[item.facts.path] = " ".join(str(error).split())
    out: dict[str, list[Encoded]] = {}
    for (bank, item), drawn in zip(found, _pictures(artist, adapters), strict=True):
        if isinstance(drawn, str):
            report.failed[item.facts.path] = f"{item.facts.path}: {drawn}"
            continue
        report.drawn += 1
        out.setdefault(bank, []).append(replace(item, features=replace(item.features, drawn=drawn)))
    return out


def _opened(facts: Facts, files: Sequence[Seen]) -> Adapter:
    """The adapter from a file that is still the one that was indexed; raises :class:`FormatError`."""
    for seen in sorted(files, key=lambda seen: seen.path != facts.path):
        try:
            status = os.stat(seen.path)
        except OSError:
            continue
        if seen.same_file(status.st_size, status.st_mtime_ns):
            return load(seen.path, base=facts.base)
    raise FormatError(f"{facts.path}: gone or changed since it was indexed; build the index again")


def _pictures(artist: Artist, adapters: Sequence[Adapter]) -> list[Tensor | str]:
    """The pictures of each adapter, or why there are none."""
    try:
        return list(draw_probes(artist, adapters))
    except (FormatError, FloatingPointError) as error:
        if len(adapters) == 1:
            return [f"cannot be drawn with ({' '.join(str(error).split())})"]
    # One of them fails, and may spoil the others' pictures: each by itself.
    return [drawn for adapter in adapters for drawn in _pictures(artist, [adapter])]


def _keep(collection: Collection, completed: dict[str, list[Encoded]]) -> None:
    """Features to shards, then rows to the index; a row that is cut off here counts as out of date."""
    for bank, found in completed.items():
        base = collection.store.write(found, bank).base
        if collection.indexed:
            ids = tuple(item.facts.id for item in found)
            there = collection.index.scan(Compare("id", "in", ids), ("id", "quarantine", "added"))
            kept = {row["id"]: row for row in there}
            collection.index.upsert(rows(found, base, collection.banks, collection.encoders, kept))
