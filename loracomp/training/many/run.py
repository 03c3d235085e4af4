"""A run of many adapters from manifest to files: what ``train many`` calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from loracomp.errors import ResourceError, UsageError
from loracomp.loading import open_base
from loracomp.pipeline import attach, denoiser_of, detach
from loracomp.training.distillation import Distillation
from loracomp.training.inject import freeze
from loracomp.training.interrupt import InterruptedManyError
from loracomp.training.loop import REPORT_SECONDS, Report
from loracomp.training.many import memory, state
from loracomp.training.many.cohort import Cohort, Member, cohorts_of
from loracomp.training.many.desk import Desk, already_there
from loracomp.training.many.engine import Engine
from loracomp.training.many.manifest import read_manifest
from loracomp.training.many.plan import Plan, make_plan, read_data
from loracomp.training.many.stack import Stack
from loracomp.training.progress import silent
from loracomp.training.result import Origin, Trained
from loracomp.training.run import half_precision, never
from loracomp.training.samples import write_sheet
from loracomp.training.session import objective_of
from loracomp.training.wiring import row_of


@dataclass(frozen=True)
class Ways:
    """How a run of many adapters goes about it; what comes out does not depend on it.

    Attributes:
        at_once: Adapters at once; None chooses by the free memory.
        compile: Whether to compile the denoiser with ``torch.compile``.
        graph: Whether to record the work of a step as a CUDA graph; on other devices nothing changes.
        report: Told of what happens.
        stop: Asked after each step; True saves the state and ends the run.
    """

    at_once: int | None = None
    compile: bool = False
    graph: bool = False
    report: Report = silent
    stop: Callable[[], bool] = never


@dataclass(eq=False)
class _Clock:
    """Steps of all adapters, for the bar: in all, done, and when process and steps began."""

    total: int
    done: int = 0
    begun: float = field(default_factory=time.monotonic)
    stepping: float | None = None
    told: float = 0.0


def train_many(
    manifest: Path, out: Path, ways: Ways = Ways(), *, pipe: Any = None, device: str = "auto"
) -> dict[str, Any]:
    """Trains every adapter of a manifest, many at once, and saves each as ``out/NAME.safetensors``.

    Run again after an interruption, it keeps what is finished and goes on where it stopped; on a CPU
    the results are bit for bit those of a run without a break. Adapters that ended early are tried anew.

    Args:
        manifest: Rows with name, data folder and settings; see :func:`read_manifest`.
        out: Folder to write; ``report.json`` in it says what became of each adapter.
        ways: How to go about it.
        pipe: The base if it is open already; it is left as it was.
        device: ``cpu``, ``cuda`` or ``auto``; unused with ``pipe``.

    Returns:
        The report: totals, memory as counted, and of each adapter status, file, steps and loss or reason.

    Raises:
        UsageError: Manifest or output cannot be used.
        TrainingError: Data cannot be used, or files in ``out`` are of another run.
        InterruptedManyError: ``stop`` said so; the same call goes on.
        ResourceError: The device's memory is too small.
    """
    if ways.at_once is not None and ways.at_once < 1:
        raise UsageError(f"at once: {ways.at_once}; at least 1")
    rows = read_manifest(manifest)
    data = read_data(rows)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror})") from None
    half = half_precision(rows[0].config, device if pipe is None else str(pipe.device))
    if pipe is None:
        pipe = open_base(rows[0].config.base, dtype="bf16" if half else "fp32", device=device)
    freeze(pipe)
    plan = make_plan(pipe, Origin.of(pipe, row_of(pipe)), rows, data, out)
    return _Run(plan, out, ways, half).run()


class _Run:
    """One call of :func:`train_many` with everything open."""

    def __init__(self, plan: Plan, out: Path, ways: Ways, half: bool) -> None:
        self.plan, self.out, self.ways, self.half = plan, out, ways, half
        self.desk = Desk(plan.origin)
        self.budget: dict[str, int] = {}
        self.seats = 0
        self.digest = plan.digest

    def run(self) -> dict[str, Any]:
        begun = state.read_progress(self.out, self.digest)
        cohorts: list[tuple[Cohort, state.Progress | None]] = []
        waiting = set(begun.members) if begun else set()
        self.desk.kept = [m.name for m in self.plan.members if m.name not in waiting and already_there(m)]
        if begun:
            cohorts.append((state.cohort_of(begun, self.plan.named), begun))
            self.desk.failed |= begun.failed
            left = waiting - set(begun.queue) - {row[0] for row in begun.seats if row}
            self.desk.kept += sorted(left - set(begun.failed))
        gone = waiting | set(self.desk.kept) | set(self.desk.failed)
        cohorts += [(c, None) for c in cohorts_of([m for m in self.plan.members if m.name not in gone])]
        self.clock = _Clock(sum(self._steps_left(*pair) for pair in cohorts))
        try:
            for cohort, progress in cohorts:
                self._train(cohort, progress)
        except torch.OutOfMemoryError as error:
            raise ResourceError("out of memory; lower --at-once, batch or rank") from error
        finally:
            self.desk.settle()
            self.desk.close()
            report = self._report()
        state.discard(self.out)
        self._draw()
        return report

    def _steps_left(self, cohort: Cohort, progress: state.Progress | None) -> int:
        if progress is None:
            return cohort.total_steps
        steps = {member.name: member.config.steps for member in cohort.members}
        left = sum(steps[row[0]] - row[1] for row in progress.seats if row)
        return left + sum(steps[name] for name in progress.queue)

    def _train(self, cohort: Cohort, progress: state.Progress | None) -> None:
        pipe, config = self.plan.pipe, cohort.config
        names = {m.name for m in cohort.members}
        if progress:
            names = {*progress.queue, *(row[0] for row in progress.seats if row)}
        members = [member for member in cohort.members if member.name in names]
        encoded, firsts = self.plan.encode(members, cohort)
        resolution = self.plan.origin.resolution(config)
        objective = objective_of(pipe, encoded, config, resolution, self.half)
        places = self.plan.places_of(cohort)
        denoiser: Any = denoiser_of(pipe)[1]
        if config.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        budget = memory.count(pipe, cohort, places, objective)
        free = memory.free_bytes(objective.device)
        at_once = self.ways.at_once or budget.seats(free, len(cohort.members), objective.device.type)
        self.seats = len(progress.seats) if progress else cohort.seats(at_once)
        self.budget = budget.facts(self.seats)
        stack = Stack(places, self.seats, cohort.rank, objective.device, cohort.scaled)
        if isinstance(objective, Distillation):
            objective.silent = stack.silent
        elif self.ways.compile:
            objective.model = torch.compile(objective.model, dynamic=False)
        stack.install()
        try:
            engine = Engine(stack, cohort, objective, firsts, self.desk, self._graphed(cohort, objective))
            if progress:
                state.restore(self.out, progress, self.plan.named, engine)
            else:
                engine.queue.extend(members)
                engine.admit()
            self._tell_start(cohort, engine)
            self._loop(engine)
        finally:
            stack.remove()
            if config.gradient_checkpointing:
                denoiser.disable_gradient_checkpointing()

    def _graphed(self, cohort: Cohort, objective: Any) -> bool:
        """Whether a graph can be recorded: on CUDA, where no part of the step looks at values."""
        plain = cohort.config.objective == "diffusion" and not cohort.config.train_text_encoder
        return self.ways.graph and plain and objective.device.type == "cuda"

    def _loop(self, engine: Engine) -> None:
        try:
            while engine.active:
                before = len(self.desk.failed)
                self.clock.stepping = self.clock.stepping or time.monotonic()
                self.clock.done += engine.advance()
                for name in list(self.desk.failed)[before:]:
                    text = f"{self.desk.failed[name]}; the others go on"
                    self.ways.report({"event": "failed", "name": name, "text": text})
                self._tell(engine)
                stopping = self.ways.stop()
                if engine.active and (stopping or self._due(engine)):
                    path = state.write_state(self.out, self.digest, engine)
                    self.ways.report({"event": "checkpoint", "text": f"saved in {path}"})
                if stopping and (engine.active or engine.queue):
                    self.desk.settle()
                    done = len(self.desk.done) + len(self.desk.kept)
                    raise InterruptedManyError(done, len(self.plan.members), self.out)
        finally:
            engine.close()

    @staticmethod
    def _due(engine: Engine) -> bool:
        """Whether an adapter at work has come to its next checkpoint."""
        every = [(seat.step, seat.member.config.checkpoint_every) for seat in engine.active]
        return any(often and step and step % often == 0 for step, often in every)

    def _tell_start(self, cohort: Cohort, engine: Engine) -> None:
        size = self.budget["total"] / 2**20
        self.ways.report(
            {
                "event": "cohort",
                "adapters": len(cohort.members),
                "at_once": len(engine.seats),
                "memory": self.budget,
                "text": f"{len(cohort.members)} adapters, {len(engine.seats)} at once, "
                f"{cohort.width} pictures each, rank up to {cohort.rank}, {size:.0f} MiB as counted, "
                f"{'bf16' if self.half else 'fp32'} on {engine.objective.device}",
            }
        )

    def _tell(self, engine: Engine) -> None:
        clock, now = self.clock, time.monotonic()
        if now - clock.told < REPORT_SECONDS and engine.active:
            return
        clock.told = now
        each = (now - (clock.stepping or now)) / clock.done
        self.ways.report(
            {
                "event": "step",
                "step": clock.done,
                "steps": clock.total,
                "loss": round(engine.loss, 5),
                "step_ms": round(1000 * each, 2),
                "eta_s": round(each * (clock.total - clock.done), 1),
                "at_work": len(engine.active),
                "waiting": len(engine.queue),
            }
        )

    def _report(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.clock.begun
        facts = {
            "out": str(self.out),
            "adapters_in_all": len(self.plan.members),
            "done": len(self.desk.done) + len(self.desk.kept),
            "failed": len(self.desk.failed),
            "at_once": self.seats,
            "seconds": round(seconds, 2),
            "adapters_per_minute": round(60 * len(self.desk.done) / max(seconds, 1e-9), 2),
            "memory": self.budget,
        }
        return self.desk.report(self.out, facts)

    def _draw(self) -> None:
        """Sample grids of the adapters whose rows asked for them, one after another."""
        for name, trained in self.desk.done.items():
            if trained.config.sample_count:
                self._draw_one(trained, self.plan.named[name])

    def _draw_one(self, trained: Trained, member: Member) -> None:
        pipe = self.plan.pipe

        @contextmanager
        def alone() -> Iterator[None]:
            detach(pipe)
            yield
            attach(pipe, [trained.adapter])

        attach(pipe, [trained.adapter])
        try:
            path, row = member.out.with_suffix(".png"), self.plan.origin.row
            write_sheet(pipe, member.config, row, member.captions, path, alone=alone, autocast=self.half)
        finally:
            detach(pipe)
