"""Many files encoded by many processes; a file that kills its process is set aside, and the rest go on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from loracomp.formats.doctor import prepare_process
from loracomp.retrieval.bank import ProbeBank, load_bank
from loracomp.retrieval.encoding import Encoded, Facts, encode_files
from loracomp.retrieval.features import Features
from loracomp.retrieval.shards import pack, unpack

TASK = 16
"""Files that a process takes at a time, at most."""
_AHEAD = 4


@dataclass(frozen=True)
class Job:
    """How to encode: the banks' files by base, and the base that files must be for."""

    banks: tuple[tuple[str, Path], ...] = ()
    base: str | None = None


Result = Encoded | str
"""An encoded file, or why it could not be encoded."""
_Packed = tuple[list[tuple[str, str | Facts]], dict[str, bytes]]
"""Facts of files or why there are none, and the features in the same order, by base."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_all(files: Sequence[str], job: Job, jobs: int) -> Iterator[tuple[str, Result]]:
    """Files and their results, as they come; nothing is raised for a file.

    Args:
        files: Paths.
        job: How to encode.
        jobs: Processes; one works in this process.
    """
    if jobs <= 1 or len(files) <= 1:
        for task in _tasks(files, 1):
            yield from zip(task, _encoded(task, job), strict=True)
        return
    left = list(files)
    done: set[str] = set()
    for path, result in _pooled(left, job, jobs):
        done.add(path)
        yield path, result
    for path in (path for path in left if path not in done):
        yield path, _alone(path, job)


def _tasks(files: Sequence[str], jobs: int) -> list[Sequence[str]]:
    """Files in parts, of which every process gets several where there are few."""
    size = max(min(TASK, len(files) // (4 * jobs)), 1)
    return [files[start : start + size] for start in range(0, len(files), size)]


def _pooled(files: Sequence[str], job: Job, jobs: int) -> Iterator[tuple[str, Result]]:
    """Results of a pool until all are there or one of its processes dies."""
    tasks = iter(_tasks(files, jobs))
    # Fresh processes, because torch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, get_context("spawn"), prepare_process) as pool:
        running: set[Future[_Packed]] = set()
        try:
            while True:
                while len(running) < jobs * _AHEAD and (task := next(tasks, None)) is not None:
                    running.add(pool.submit(_several, task, job))
                if not running:
                    return
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield from _unpacked(future.result())
        except BrokenProcessPool:
            return
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _alone(path: str, job: Job) -> Result:
    """One file in a process of its own, since it may be the one that killed another."""
    with ProcessPoolExecutor(1, get_context("spawn"), prepare_process) as pool:
        try:
            return next(_unpacked(pool.submit(_several, [path], job).result()))[1]
        except BrokenProcessPool:
            return f"{path}: its process was killed, perhaps for its memory; the file may be too large"


def _several(paths: Sequence[str], job: Job) -> _Packed:
    """Results in bytes: tensors sent as they are would hold a file handle each."""
    from safetensors.torch import save

    facts: list[tuple[str, str | Facts]] = []
    by_base: dict[str, list[Features]] = {}
    for path, result in zip(paths, _encoded(paths, job), strict=True):
        facts.append((path, result if isinstance(result, str) else result.facts))
        if not isinstance(result, str):
            by_base.setdefault(result.facts.base, []).append(result.features)
    return facts, {base: save(pack(rows)) for base, rows in by_base.items()}


def _unpacked(packed: _Packed) -> Iterator[tuple[str, Result]]:
    from safetensors.torch import load

    facts, features = packed
    rows = {base: iter(unpack(load(data))) for base, data in features.items()}
    for path, said in facts:
        yield path, said if isinstance(said, str) else Encoded(said, next(rows[said.base]))


def _encoded(paths: Sequence[str], job: Job) -> list[Result]:
    out: list[Result] = []
    for found in encode_files(paths, banks=_banks(job.banks), base=job.base):
        out.append(found if isinstance(found, Encoded) else " ".join(str(found).split()))
    return out


@lru_cache(1)
def _banks(places: tuple[tuple[str, Path], ...]) -> dict[str, ProbeBank]:
    return {base: load_bank(path) for base, path in places}
