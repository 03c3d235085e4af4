"""Time-limited training: budgets, schedules over elapsed time, atomic checkpoints, logs, averages."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.errors import TrainingError


class Budget:
    """Seconds granted to a stage; ``spent`` counts what earlier runs of it used."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.seconds = minutes * 60
        self._start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds used so far, over all runs."""
        return time.monotonic() - self._start

    @property
    def fraction(self) -> float:
        """Share of the budget used, 0 to 1."""
        return min(1.0, self.spent / self.seconds)

    def passed(self, step: int, steps: int | None = None) -> float:
        """Share of the run that is over, by the clock or by the count of ``steps`` if there is one."""
        return self.fraction if not steps else max(self.fraction, min(1.0, step / steps))


def learning_rate(peak: float, step: int, fraction: float, warm: int = 200, hold: float = 0.4) -> float:
    """Linear warm-up over ``warm`` steps, constant until ``hold`` of the time, then cosine to zero."""
    rise = min(1.0, (step + 1) / warm)
    fall = max(0.0, (fraction - hold) / (1 - hold))
    return peak * rise * 0.5 * (1 + math.cos(math.pi * fall))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate times its own ``scale`` (1 if it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def save_atomic(path: Path, value: Any) -> None:
    """Write with ``torch.save`` so that ``path`` is always either the old or the new whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    torch.save(value, part)
    os.replace(part, path)


def wait_for(path: Path, minutes: float) -> Path:
    """Return ``path`` once it exists. Raises TrainingError when it does not come in time."""
    until = time.monotonic() + minutes * 60
    while not path.exists():
        if time.monotonic() > until:
            raise TrainingError(f"{path} did not appear within {minutes:g} minutes; run its stage")
        time.sleep(0.3)
    return path


class Log:
    """Rows of figures, rewritten to a JSON file whenever one is added."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.about = about

    def add(self, **figures: Any) -> None:
        """Append one row, print it among the errors, and write the file."""
        self.rows.append({k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.about | {"log": self.rows}, indent=1) + "\n")
        line = " ".join(f"{k}={v}" for k, v in self.rows[-1].items())
        print(f"[{self.path.stem}] {line}", file=sys.stderr, flush=True)


class Average:
    """Exponential moving average of a module's parameters, in fp32; buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, _ in module.named_parameters()]
        self.values = [p.detach().float().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], step: int) -> None:
        """Move towards ``parameters``; early on the decay is (1 + step) / (10 + step)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the averages."""
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)
