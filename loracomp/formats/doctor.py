"""The doctor: every check on files and folders of LoRAs, on all cores, and duplicates among them."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import loracomp.formats.header_checks  # noqa: F401 — registers its checks
from loracomp.errors import FormatError, LoracompError, ResourceError
from loracomp.formats.checks import Finding, counted, findings
from loracomp.formats.gate import DEFAULT_LIMITS, Limits, printable
from loracomp.formats.intruders import intruders
from loracomp.formats.matching import Match, match
from loracomp.formats.native import Table
from loracomp.formats.pieces import split
from loracomp.formats.report import Report, examine
from loracomp.formats.scales import stated
from loracomp.formats.sketches import same, size
from loracomp.formats.source import Source
from loracomp.formats.updates import UnusableError, Weights, read
from loracomp.formats.weights import folder_weights
from loracomp.lowrank import LowRank

_PARALLEL_FROM = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says of one file.

    Attributes:
        file: The path as it was given or found.
        report: What is in it; None where it cannot be read at all.
        findings: What is wrong with it or to know of it, errors first.
        error: Why it cannot be read.
    """

    file: str
    report: Report | None
    findings: tuple[Finding, ...]
    error: str = ""

    @property
    def complete(self) -> bool:
        """Whether every tensor has a place and is usable."""
        return self.report is not None and self.report.complete

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain JSON values."""
        return {
            "file": self.file,
            "complete": self.complete,
            "error": self.error,
            "findings": [asdict(finding) for finding in self.findings],
            "report": self.report.to_dict() if self.report else None,
        }


@dataclass(frozen=True)
class Checkup:
    """All diagnoses, in the order of the files, and groups of files that hold the same adapter."""

    diagnoses: tuple[Diagnosis, ...]
    duplicates: tuple[tuple[str, ...], ...]

    @property
    def complete(self) -> bool:
        """Whether every file is complete."""
        return all(diagnosis.complete for diagnosis in self.diagnoses)

    def to_dict(self) -> dict[str, Any]:
        """The checkup as plain JSON values."""
        return {
            "complete": self.complete,
            "duplicates": [list(group) for group in self.duplicates],
            "files": [diagnosis.to_dict() for diagnosis in self.diagnoses],
        }


def doctor(
    paths: Iterable[str | os.PathLike[str]],
    *,
    base: str | None = None,
    modules: Table | None = None,
    base_folder: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Checkup:
    """Examines LoRA files; one that cannot be read is a diagnosis too, not an exception.

    Args:
        paths: Files, and folders whose ``.safetensors`` files are taken, nested ones too.
        base: The base they must be for; recognised where None.
        modules: Weight shapes by module path of a pipeline that is none of the known bases.
        base_folder: The base in diffusers format, for DoRA and intruder dimensions.
        jobs: Processes; all cores for eight files and more, else this one.
        progress: Called with files done and files in all.
        limits: What the gate for untrusted files lets through.

    Raises:
        FormatError: A folder without LoRA files, or no path at all.
        ResourceError: The system killed one of the processes.
    """
    files = list(expand(paths))
    folder = None if base_folder is None else os.fspath(base_folder)
    one = partial(diagnose, base=base, modules=modules, base_folder=folder, limits=limits)
    workers = min(jobs or _cores(), len(files))
    if workers > 1 and (jobs is not None or len(files) >= _PARALLEL_FROM):
        diagnoses = _in_parallel(one, files, workers, progress)
    else:
        diagnoses = []
        for file in files:
            diagnoses.append(one(file))
            if progress:
                progress(len(diagnoses), len(files))
    return with_duplicates(Checkup(tuple(diagnoses), duplicates(diagnoses)))


def _cores() -> int:
    """Cores that this process may use, which is fewer than all under taskset and in many containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def expand(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Files as they are; folders as the ``.safetensors`` files in them, sorted."""
    empty = True
    for path in paths:
        place, empty = Path(path), False
        if not place.is_dir():
            yield os.fspath(path)
            continue
        inside = sorted(str(file) for file in place.rglob("*.safetensors") if file.is_file())
        if not inside:
            raise FormatError(
                f"{printable(str(place), 200)}: holds no .safetensors file; give another folder"
            )
        yield from inside
    if empty:
        raise FormatError("no file is given; name LoRA files or folders")


def _in_parallel(
    one: Callable[[str], Diagnosis], files: Sequence[str], workers: int, progress: Progress | None
) -> list[Diagnosis]:
    """All diagnoses in order; fresh processes, because torch's threads do not survive a fork.

    Ctrl-C reaches this process alone, and it ends the others, which only read.
    """
    done: dict[int, Diagnosis] = {}
    before = active_children()
    with ProcessPoolExecutor(workers, get_context("spawn"), prepare_process) as pool:
        try:
            with _interrupts_held():
                places = {pool.submit(one, file): index for index, file in enumerate(files)}
            for future in as_completed(places):
                done[places[future]] = future.result()
                if progress:
                    progress(len(done), len(files))
        except BrokenProcessPool:
            what = f"a process was killed after {len(done)} of {len(files)} files, perhaps for its memory"
            raise ResourceError(f"{what}; use fewer processes with --jobs") from None
        except BaseException:
            for process in active_children():
                if process not in before:
                    process.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    return [done[index] for index in range(len(files))]


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes and threads that start here never see Ctrl-C; this thread sees it afterwards.

    An older thread may still be told of it, and Python then calls the handler in the main one: it waits too.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    came: list[tuple[int, FrameType | None]] = []
    handler = signal.signal(signal.SIGINT, lambda *call: came.append(call)) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if came and callable(handler):
        handler(*came[0])


def prepare_process() -> None:
    """Makes this process one of many: one thread, and no search for garbage among all that torch loaded."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def diagnose(
    file: str | os.PathLike[str],
    *,
    base: str | None = None,
    modules: Table | None = None,
    base_folder: str | None = None,
    weights: Weights | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Diagnosis:
    """The diagnosis of one file; see :func:`doctor`."""
    name = os.fspath(file)
    try:
        if base_folder is not None:
            weights = folder_weights(base_folder)
        with Source(file, limits) as source:
            matched = match(source, base, modules)
            report = examine(source, matched, weights, whole=False)
            found = findings(report)
            if weights is not None:
                found += tuple(_intruders(source, matched, weights))
        return Diagnosis(name, report, found)
    except LoracompError as error:
        return Diagnosis(name, None, (), str(error))


def _intruders(source: Source, matched: Match, weights: Weights) -> Iterator[Finding]:
    """A note on layers whose update puts new directions before the weight's own."""
    says = stated(source.metadata, source.path)
    counts: dict[str, int] = {}
    worst = 0.0
    for item in matched.found:
        try:
            update = read(source, item, says)
        except UnusableError:
            continue
        for path, layer in split(update, item.module).items() if isinstance(update, LowRank) else ():
            found = intruders(weights(path), layer)
            worst = max(worst, found.spike)
            if found.count:
                counts[path] = found.count
    if counts:
        some = ", ".join(sorted(counts, key=lambda path: -counts[path])[:3])
        total = sum(counts.values())
        where = f"{counted(len(counts), 'layer')} ({some})"
        what = f"{counted(total, 'intruder dimension')} in {where}; largest spike ×{worst:.2g}"
        yield Finding("intruders", "note", what, f"try it at a weight of {min(1.0, 1 / worst):.2g}")


def duplicates(diagnoses: Iterable[Diagnosis]) -> tuple[tuple[str, ...], ...]:
    """Groups of undamaged files that hold the same update, in whatever dialect, gauge or dtype."""
    whole = [(d.file, d.report) for d in diagnoses if d.report is not None]
    known = [(file, report.fingerprint) for file, report in whole if not report.damaged]
    known = sorted((item for item in known if size(item[1]) > 0), key=lambda item: size(item[1]))
    groups: list[tuple[list[str], tuple[float, ...]]] = []
    for file, print_ in known:
        # Sorted by size, so a group that is much smaller can match nothing that follows.
        near = (group for group in reversed(groups) if size(group[1]) > 0.9 * size(print_))
        home = next((group for group in near if same(group[1], print_)), None)
        if home:
            home[0].append(file)
        else:
            groups.append(([file], print_))
    return tuple(tuple(sorted(files)) for files, _ in groups if len(files) > 1)


def with_duplicates(checkup: Checkup) -> Checkup:
    """The checkup with a note in the diagnosis of each file that has a double."""
    doubles = {file: group for group in checkup.duplicates for file in group}
    out = []
    for diagnosis in checkup.diagnoses:
        others = [f for f in doubles.get(diagnosis.file, ()) if f != diagnosis.file]
        note = Finding("duplicate", "note", f"the same adapter as {', '.join(others)}", "keep one of them")
        out.append(replace(diagnosis, findings=(*diagnosis.findings, note)) if others else diagnosis)
    return replace(checkup, diagnoses=tuple(out))
