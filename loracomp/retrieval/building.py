"""Building an index: files to features to rows, again and again, from wherever the last build stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loracomp.errors import FormatError
from loracomp.formats.doctor import expand
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.encoding import Encoded
from loracomp.retrieval.journal import ATTEMPTS, Seen
from loracomp.retrieval.making import rows
from loracomp.retrieval.workers import Job, Result, cores, encode_all

BATCH = 64
_PARALLEL_FROM = 16
Progress = Callable[[int, int], None]


@dataclass
class BuildReport:
    """What a build did.

    Attributes:
        files: Files looked for.
        added: Adapters that are new in the index.
        renewed: Rows written again because the file, the probes or the encoder changed.
        copies: Files whose weights were there already under another path.
        unchanged: Files that were seen before and are as they were.
        dead: Files that cannot be read, and why.
        rows: Rows in the index now.
        version: Version of the index now.
    """

    files: int = 0
    added: int = 0
    renewed: int = 0
    copies: int = 0
    unchanged: int = 0
    dead: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    version: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dict(vars(self))


def build(
    places: Iterable[str | os.PathLike[str]],
    collection: Collection,
    *,
    base: str | None = None,
    base_folder: Path | None = None,
    jobs: int | None = None,
    retry: bool = False,
    progress: Progress | None = None,
    batch: int = BATCH,
) -> BuildReport:
    """Brings all LoRA files of some folders into the index.

    Features are written shard by shard and then noted in the journal; a build that is stopped at any point
    goes on from there. Files that were seen and have not changed are not opened.

    Args:
        places: Files, and folders whose ``.safetensors`` files are taken, nested ones too.
        collection: The index.
        base: The base they must be for; recognised where None.
        base_folder: That base in diffusers format, for its text probes; glyph has its own.
        jobs: Processes; all cores for 16 files and more, else this one.
        retry: Whether to try files again that failed twice.
        progress: Called with files done and files in all.
        batch: Files after which features, journal and index are written.

    Raises:
        FormatError: A folder without LoRA files, or no folder at all.
        ResourceError: The base's folder cannot be used, or another build is under way.
        UsageError: ``base_folder`` without ``base``.
    """
    files = [os.path.abspath(file) for file in expand(places)]
    files = list(dict.fromkeys(files))
    with collection.writing():
        collection.add_bank(base or "glyph", base_folder if base else None)
        report = BuildReport(files=len(files))
        if collection.indexed:
            report.renewed = collection.synchronize(collection.removed())
        todo = list(_todo(files, collection, retry, report))
        workers = min(jobs or cores(), max(len(todo) // 2, 1))
        if jobs is None and len(todo) < _PARALLEL_FROM:
            workers = 1
        job = Job(tuple(collection.bank_files().items()), base)
        results = _counted(
            encode_all([path for path, *_ in todo], job, workers), report, len(files), progress
        )
        facts = {path: (size, changed) for path, size, changed in todo}
        for part in _batches(results, batch):
            _keep(part, facts, collection, report)
        report.dead = {seen.path: seen.error for seen in collection.journal.dead() if seen.path in set(files)}
        if collection.indexed:
            collection.index.optimize()
            stats = collection.index.stats()
            report.rows, report.version = stats["rows"], stats["version"]
        return report


def _todo(
    files: Sequence[str], collection: Collection, retry: bool, report: BuildReport
) -> Iterator[tuple[str, int, int]]:
    """Files to look at, with size and time of change; those seen before are counted."""
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            yield path, 0, 0
            continue
        seen = collection.journal.seen.get(path)
        same = seen is not None and seen.same_file(status.st_size, status.st_mtime_ns)
        if seen is None or not same or (seen.error and (retry or seen.attempts < ATTEMPTS)):
            yield path, status.st_size, status.st_mtime_ns
        else:
            report.unchanged += not seen.error


def _counted(
    results: Iterable[tuple[str, Result]], report: BuildReport, total: int, progress: Progress | None
) -> Iterator[tuple[str, Result]]:
    done = report.unchanged
    for item in results:
        done += 1
        if progress:
            progress(done, total)
        yield item


def _batches(results: Iterable[tuple[str, Result]], size: int) -> Iterator[list[tuple[str, Result]]]:
    held: list[tuple[str, Result]] = []
    for item in results:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def _keep(
    batch: Sequence[tuple[str, Result]],
    stats: dict[str, tuple[int, int]],
    collection: Collection,
    report: BuildReport,
) -> None:
    """Features to a shard, files to the journal, rows to the index, in this order."""
    known = collection.store.latest()
    fresh: dict[str, list[Encoded]] = {}
    entries, new = [], set()
    for path, result in batch:
        size, changed = stats[path]
        if isinstance(result, str):
            before = collection.journal.seen.get(path)
            again = before is not None and before.error and before.same_file(size, changed)
            attempts = (before.attempts if before and again else 0) + 1
            entries.append(Seen(path, size, changed, error=result, attempts=attempts))
            continue
        id_ = result.facts.id
        entries.append(Seen(path, size, changed, id=id_))
        if id_ in new:
            report.copies += 1
        elif id_ not in known:
            report.added += 1
        elif known[id_][0].facts[known[id_][1]].path == path:
            report.renewed += 1
        else:
            report.copies += 1
            if not collection.indexed or any(row for row in collection.index.get([id_])):
                continue
        if id_ not in new:
            fresh.setdefault(result.facts.base, []).append(result)
            new.add(id_)
    for base, found in fresh.items():
        fresh[base] = found = _with_pictures(found, collection)
        bank = collection.banks.get(base)
        collection.store.write(found, bank.digest if bank else "")
    replaced = {before.id for path, _ in batch if (before := collection.journal.seen.get(path)) and before.id}
    collection.journal.append(entries)
    if not collection.indexed:
        return
    for base, found in fresh.items():
        collection.index.upsert(rows(found, base, collection.banks, collection.encoders))
    replaced -= {seen.id for seen in collection.journal.seen.values()}
    collection.index.delete(sorted(replaced))


def _with_pictures(found: Sequence[Encoded], collection: Collection) -> list[Encoded]:
    """Rows of weights that were encoded anew, with the pictures that were drawn of them before."""
    known = collection.store.pictures(row.facts.id for row in found)
    return [
        replace(row, features=replace(row.features, drawn=known[row.facts.id]()))
        if row.facts.id in known
        else row
        for row in found
    ]


def remove(collection: Collection, ids: Sequence[str]) -> int:
    """Takes adapters out of the index; later builds leave their files alone unless told to retry.

    Returns:
        The index's new version.

    Raises:
        FormatError: An id that is not in the index.
    """
    with collection.writing():
        there = {row["id"] for row in collection.index.scan(columns=("id",))}
        if missing := sorted(set(ids) - there):
            raise FormatError(f"{missing[0]}: not in the index; nothing was removed")
        version = collection.index.delete(list(ids))
        gone = [seen for seen in collection.journal.seen.values() if seen.id in set(ids)]
        collection.journal.append(
            replace(seen, id="", error=f"{seen.path}: removed from the index by hand", attempts=ATTEMPTS)
            for seen in gone
        )
        return version
