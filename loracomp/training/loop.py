"""The optimiser loop: steps, reports, checkpoints, and stopping when asked."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.errors import TrainingError
from loracomp.training.config import TrainConfig
from loracomp.training.objective import Objective
from loracomp.training.schedule import draw_of, rate_of

Report = Callable[[Mapping[str, Any]], None]
REPORT_SECONDS = 0.5
REMEMBERED = 50


@dataclass(eq=False)
class Loop:
    """A run's moving parts.

    Attributes:
        config: The effective config.
        objective: Loss of a batch.
        weights: Trainable parameters by name.
        report: Told of progress, at most twice a second.
        stop: Asked after every step.
        save: Writes a checkpoint.
        step: Steps done.
        seconds: Time spent in the loop.
    """

    config: TrainConfig
    objective: Objective
    weights: Mapping[str, nn.Parameter]
    report: Report
    stop: Callable[[], bool]
    save: Callable[[Loop], None]
    step: int = 0
    seconds: float = 0.0
    recent: deque[Tensor] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __post_init__(self) -> None:
        config = self.config
        self.optimizer = torch.optim.AdamW(
            list(self.weights.values()),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=self.objective.device.type in ("cpu", "cuda"),
        )

    @property
    def losses(self) -> tuple[float, ...]:
        """Losses of the latest steps, oldest first."""
        return tuple(torch.stack(list(self.recent)).tolist()) if self.recent else ()

    def run(self) -> bool:
        """Steps until the end or until asked to stop; whether the end was reached.

        Raises:
            TrainingError: The loss is no longer finite.
        """
        begin = time.monotonic() - self.seconds
        told = self.seconds
        while self.step < self.config.steps:
            learning_rate = self._advance()
            self.seconds = time.monotonic() - begin
            if self.seconds - told >= REPORT_SECONDS or self.step == self.config.steps:
                self._tell(learning_rate)
                told = self.seconds = time.monotonic() - begin  # reading the loss waits for the device
            every = self.config.checkpoint_every
            if self.step < self.config.steps:
                stopping = self.stop()
                if stopping or (every and self.step % every == 0):
                    self.save(self)
                if stopping:
                    return False
        return True

    def _advance(self) -> float:
        """One optimiser step; its learning rate."""
        config = self.config
        learning_rate = rate_of(config, self.step)
        total = torch.zeros((), device=self.objective.device)
        shape = self.objective.latent_shape
        for part in range(config.accumulation):
            chosen = draw_of(config, self.step, part, len(self.objective.data.latent_of), shape)
            loss = self.objective.loss(chosen) / config.accumulation
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.recent.append(total)
        self.step += 1
        return learning_rate

    def _tell(self, learning_rate: float) -> None:
        recent = self.losses[-20:]
        loss = sum(recent) / len(recent)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {self.step}; lower lr or use precision=fp32")
        step_seconds = self.seconds / self.step
        self.report(
            {
                "event": "step",
                "step": self.step,
                "steps": self.config.steps,
                "loss": round(loss, 5),
                "lr": learning_rate,
                "step_ms": round(step_seconds * 1000, 1),
                "eta_s": round(step_seconds * (self.config.steps - self.step), 1),
            }
        )
