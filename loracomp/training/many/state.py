"""The state of an unfinished run of many adapters: one safetensors file, replaced in one move."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import TrainingError
from loracomp.training.many.cohort import Cohort, Member
from loracomp.training.many.engine import Engine, Seat

KEY = "loracomp.training.many"
FORMAT = 1
TABLES = ("values", "first", "second")


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        run: Digest of base, manifest and data.
        members: Names of the cohort at work, in order.
        seats: Of each seat, name, step, time of taking it and seconds in it; None for an empty one.
        queue: Names that wait for a seat.
        failed: Why adapters ended early, by name.
        tick: Steps of the stack.
        broken: Per seat the step of the stack at which it broke, or -1.
    """

    run: str
    members: list[str]
    seats: list[list[Any] | None]
    queue: list[str]
    failed: dict[str, str]
    tick: int
    broken: list[int]


def state_path(out: Path) -> Path:
    """The file that holds the state of a run into the folder ``out``."""
    return out / "many.ckpt"


def write_state(out: Path, run: str, engine: Engine) -> Path:
    """Saves a run between two steps; a crash leaves the state before it or the new one, never half of it.

    Raises:
        TrainingError: The folder cannot be written.
    """
    from safetensors.torch import save

    engine.desk.settle()
    progress = Progress(
        run=run,
        members=[member.name for member in engine.cohort.members],
        seats=[[s.member.name, s.step, s.started, s.seconds] if s else None for s in engine.seats],
        queue=[member.name for member in engine.queue],
        failed=engine.desk.failed,
        tick=engine.tick,
        broken=engine.broken.tolist(),
    )
    tables = {name: getattr(engine.stack, name).cpu() for name in TABLES}
    header = {KEY: json.dumps({"format": FORMAT, **asdict(progress)})}
    path = state_path(out)
    try:
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            file.write(save({**tables, "history": engine.history.cpu()}, header))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def read_progress(out: Path, run: str) -> Progress | None:
    """Where the run into ``out`` stands; None where none was interrupted.

    Raises:
        TrainingError: The state is damaged, or that of another run.
    """
    from safetensors import SafetensorError, safe_open

    path = state_path(out)
    if not path.exists():
        return None
    hint = f"remove {path} to keep what is finished and start the others anew"
    try:
        with safe_open(path, framework="pt") as file:
            table = json.loads((file.metadata() or {})[KEY])
        if table.pop("format") != FORMAT:
            raise TrainingError(f"{path}: made by another version of loracomp; {hint}")
        progress = Progress(**table)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: damaged ({error}); {hint}") from None
    if progress.run != run:
        raise TrainingError(f"{path}: base, manifest or data changed since; restore them, or {hint}")
    return progress


def cohort_of(progress: Progress, members: dict[str, Member]) -> Cohort:
    """The cohort that was at work."""
    return Cohort(tuple(members[name] for name in progress.members))


def restore(out: Path, progress: Progress, members: dict[str, Member], engine: Engine) -> None:
    """Puts a saved run back, bit for bit.

    Raises:
        TrainingError: The state does not fit the stack.
    """
    from safetensors.torch import load_file

    saved = load_file(state_path(out))
    stack = engine.stack
    for name, place in {**{t: getattr(stack, t) for t in TABLES}, "history": engine.history}.items():
        stored: Tensor | None = saved.get(name)
        if stored is None or stored.shape != place.shape:
            raise TrainingError(f"{state_path(out)}: does not fit this base; remove it to start anew")
        place.copy_(stored)
    for number, row in enumerate(progress.seats):
        if row:
            name, step, started, seconds = row
            engine.take(number, Seat(members[name], started, step, seconds))
    engine.queue.extend(members[name] for name in progress.queue)
    engine.tick = progress.tick
    engine.broken.copy_(torch.tensor(progress.broken))


def discard(out: Path) -> None:
    """Removes the state of a run that is complete."""
    state_path(out).unlink(missing_ok=True)
