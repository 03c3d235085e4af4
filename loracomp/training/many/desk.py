"""Where finished adapters are written, beside the training, and what became of each is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from loracomp.errors import LoracompError, TrainingError
from loracomp.training.many.cohort import Member
from loracomp.training.many.stack import Stack
from loracomp.training.result import Origin, Trained

REPORT = "report.json"
WRITERS = 4


@dataclass(frozen=True)
class Finished:
    """A run's end, as the engine hands it over.

    Attributes:
        member: Whose.
        values: Its row of the stack (numbers,), on the CPU.
        started: Unix time in seconds at which it took its seat.
        seconds: Time spent in it.
        loss: Mean loss of the latest steps.
    """

    member: Member
    values: Tensor
    started: float
    seconds: float
    loss: float


@dataclass(eq=False)
class Desk:
    """Results of a run of many adapters.

    Attributes:
        origin: What files say about the base.
        done: What was written in this process, by name.
        failed: Why adapters ended early, by name.
        kept: Names of adapters whose files were there already.
    """

    origin: Origin
    done: dict[str, Trained] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(WRITERS)
        self._waiting: list[tuple[str, Future[Trained]]] = []

    def accept(self, stack: Stack, end: Finished) -> None:
        """Writes a finished adapter in a thread."""
        self._waiting.append((end.member.name, self._pool.submit(self._write, stack, end)))

    def settle(self) -> None:
        """Waits until everything accepted is written; what could not be is a failure."""
        for name, future in self._waiting:
            try:
                self.done[name] = future.result()
            except LoracompError as error:
                self.failed[name] = str(error)
        self._waiting.clear()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _write(self, stack: Stack, end: Finished) -> Trained:
        member = end.member
        updates = stack.updates(end.values, member.config, member.paths)
        times = {"started": end.started, "seconds": end.seconds, "loss": end.loss}
        return self.origin.write(member.out, updates, member.config, member.data, **times)

    def report(self, out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Writes ``report.json`` with the facts and every adapter's end; returns it as an object."""
        rows: dict[str, Any] = {name: {"status": "kept"} for name in self.kept}
        rows |= {name: {"status": "done", **result.summary} for name, result in self.done.items()}
        rows |= {name: {"status": "failed", "reason": reason} for name, reason in self.failed.items()}
        table = {**facts, "adapters": dict(sorted(rows.items()))}
        path = out / REPORT
        try:
            path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written ({error.strerror})") from None
        return table


def already_there(member: Member) -> bool:
    """Whether the member's file exists and was trained with its settings from its data.

    Raises:
        TrainingError: There is a file of its name that is something else.
    """
    from safetensors import SafetensorError, safe_open

    if not member.out.exists():
        return False
    try:
        with safe_open(member.out, framework="pt") as file:
            header = file.metadata() or {}
        made = header["loracomp.config"], json.loads(header["loracomp.data"])["fingerprint"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        made = ("", "")
    if made == (member.config.dump(), member.data.fingerprint):
        return True
    raise TrainingError(
        f"{member.out}: there already, trained with other settings or data than {member.place} says; "
        f"remove it or choose another --out"
    )
