"""The optimizer loop of a gate: steps, measurements on unseen concepts, saves, and stopping when asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from loracomp.errors import TrainingError
from loracomp.fusion.gated import GateWeights
from loracomp.training import losses
from loracomp.training.gate import state
from loracomp.training.gate.draws import WHOLE, Batch, Draws
from loracomp.training.gate.objective import GateVectors, Noise, Objective, Placed, kinds
from loracomp.training.gate.recorded import Recorded, Work
from loracomp.training.gate.settings import Settings
from loracomp.training.interrupt import InterruptedManyError
from loracomp.training.loop import Report

SAVE_SECONDS = 60.0
TOLD_SECONDS = 5.0
WARM_UP = 50


@dataclass(frozen=True, eq=False)
class Side:
    """One side of the split by concepts, ready to be drawn from."""

    draws: Draws
    objective: Objective


@dataclass(eq=False)
class Run:
    """A run's moving parts.

    Attributes:
        settings: How.
        vectors: The gate.
        learning: What is trained on.
        held: What is measured on; None where the corpus has too few such concepts.
        out: File to write.
        gate: The gate as it is to be saved, with its record; its vectors are replaced.
        report: Told of what happens.
        stop: Asked after each step.
        graph: Whether steps are recorded as CUDA graphs, one for each number of adapters.
    """

    settings: Settings
    vectors: GateVectors
    learning: Side
    held: Side | None
    out: Path
    gate: GateWeights
    report: Report
    stop: Callable[[], bool]
    graph: bool = False

    def __post_init__(self) -> None:
        values = self.vectors.values
        fused = values.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW([values], lr=self.settings.lr, weight_decay=0.0, fused=fused)
        self.average = values.detach().clone()
        work = Work(self.learning.objective, self.settings.hinge, self.settings.margin)
        self.work = Recorded(work) if self.graph else work
        self.step, self.seconds = state.restore(self.out, self.settings, values, self.average, self.optimizer)

    def train(self) -> dict[str, Any]:
        """Trains to the end of steps or minutes; a summary."""
        begun, saved, told = time.monotonic() - self.seconds, time.monotonic(), 0.0
        recent: dict[str, list[float]] = {}
        first = self.step
        pool = ThreadPoolExecutor(2)
        try:
            ahead = [pool.submit(self._drawn, self.step + i) for i in range(3)]
            while self.step < self.settings.steps and self.seconds < 60 * self.settings.minutes:
                batch, noise = ahead.pop(0).result()
                ahead.append(pool.submit(self._drawn, self.step + 3))
                placed = self.learning.objective.placed(batch, noise)
                errors = self._one(placed)
                self.step += 1
                self.seconds = time.monotonic() - begun
                if self.seconds - told > TOLD_SECONDS or self.step == first + 1:
                    told = self.seconds
                    self._tell(kinds(placed, errors), placed, recent)
                if self.step % self.settings.every == 0 and self.held:
                    self.report({"event": "note", "text": f"unseen at {self.step}: {_short(self.measure())}"})
                if time.monotonic() - saved > SAVE_SECONDS:
                    saved = time.monotonic()
                    self.save()
                if self.stop():
                    self.save()
                    raise InterruptedManyError(self.step, self.settings.steps, self.out)
        finally:
            pool.shutdown(cancel_futures=True)
        return self._finish()

    def _finish(self) -> dict[str, Any]:
        found = self.measure() if self.held else {}
        summary = {"steps": self.step, "seconds": round(self.seconds, 1), "unseen": found}
        with self._averaged():
            self._gate().save(self.out, **summary)
        state.discard(self.out)
        return {"out": str(self.out), "bytes": self.out.stat().st_size, **summary}

    def save(self) -> None:
        """Writes the state, and the gate as it is."""
        state.write(
            self.out,
            self.settings,
            self.step,
            self.seconds,
            self.vectors.values,
            self.average,
            self.optimizer,
        )
        with self._averaged():
            self._gate().save(self.out, steps=self.step, seconds=round(self.seconds, 1))

    def _one(self, batch: Placed) -> torch.Tensor:
        """One optimizer step; the errors of its samples."""
        share = max(self.step / self.settings.steps, self.seconds / (60 * self.settings.minutes))
        rate = (
            self.settings.lr * min(1.0, (self.step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * share))
        )
        self.optimizer.param_groups[0]["lr"] = rate
        errors = self.work(batch)
        torch.nn.utils.clip_grad_norm_([self.vectors.values], 1.0)
        self.optimizer.step()
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        self.average.lerp_(self.vectors.values.detach(), 1 - decay)
        return errors

    def _drawn(self, step: int) -> tuple[Batch, Noise]:
        """The random part of a step, a function of seed and step."""
        side, rng = self.learning, Random(f"{self.settings.seed} {step}")
        count = rng.choice(side.draws.counts())
        size = max(1, self.settings.batch // count)
        batch = side.draws.batch(count, size, rng)
        return batch, _noise(side.objective, size, self.settings.seed * 1_000_003 + step)

    @torch.no_grad()
    def measure(self) -> dict[str, dict[str, float]]:
        """Mean errors on unseen concepts by N: gated, summed, and how much less the gate's are, in percent.

        The same samples each time; true pictures of all adapters, but for N = 1.
        """
        assert self.held is not None
        side, found = self.held, {}
        with self._averaged():
            for count in side.draws.counts():
                rng = Random(f"held out {count}")
                parts = -(-self.settings.measured // max(self.settings.batch, count))
                size = max(1, self.settings.measured // (count * parts))
                sums = torch.zeros(2, dtype=torch.float64)
                for number in range(parts):
                    batch = side.draws.batch(count, size, rng)
                    noise = _noise(side.objective, size, 10**9 + 100 * count + number)
                    placed = side.objective.placed(batch, noise)
                    kept = (batch.kind == WHOLE) if count > 1 else torch.ones(size, dtype=torch.bool)
                    for place, gated in enumerate((True, False)):
                        errors = side.objective.errors(placed, gated).double().cpu()
                        sums[place] += errors[kept].sum()
                if not bool(sums.isfinite().all()):
                    raise TrainingError(f"{self.out}: the errors are not finite any more; lower --lr")
                gated, summed = sums.tolist()
                less = 100 * (1 - gated / summed) if summed else 0.0
                found[str(count)] = {"gated": gated, "summed": summed, "less": round(less, 3)}
        return found

    def _tell(self, errors: Mapping[str, float], batch: Placed, recent: dict[str, list[float]]) -> None:
        for name, value in errors.items():
            recent.setdefault(name, []).append(value)
            del recent[name][:-20]
        means = {name: sum(values) / len(values) for name, values in recent.items()}
        text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        pace = self.step / max(self.seconds, 1e-9)
        told = (
            f"step {self.step}, {self.seconds:.0f} s, {pace:.2f} steps/s, N {batch.chosen.shape[1]}: {text}"
        )
        self.report({"event": "note", "text": told})

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The running average in place of the gate."""
        values = self.vectors.values
        own = values.detach().clone()
        with torch.no_grad():
            values.copy_(self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                values.copy_(own)

    def _gate(self) -> GateWeights:
        parts = self.vectors.values.detach().split(list(self.vectors.widths.values()), dim=1)
        layers = dict(zip(self.vectors.widths, parts, strict=True))
        return GateWeights(self.gate.form, self.gate.base, layers, self.gate.record)


def _noise(objective: Objective, size: int, seed: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    level = losses.stratified(size, generator)
    return Noise(level, torch.randn(size, *objective.latents.shape[1:], generator=generator))


def _short(found: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(
        f"N={count} {100 - row['less']:.2f} % of the sum's error" for count, row in found.items()
    )
