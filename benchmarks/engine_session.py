"""How benchmarks.engine times contestants, and where it writes what it found."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_models import MODELS, TINY, Stage

Run = Callable[[], Any]


@dataclass
class Session:
    """What a command line asks for, and the file that results go to."""

    device: str
    dtype: torch.dtype
    tiny: bool
    rounds: int
    calls: int
    backend: str
    contestants: tuple[str, ...]
    file: Path
    results: dict[str, Any]
    mode: str = ""

    def stage(self, model: str) -> Stage:
        """A model by name, a small one with ``--tiny``."""
        return Stage.of((TINY if self.tiny else MODELS)[model], self.device, self.dtype)

    def side(self, side: int) -> int:
        """Side of the latent."""
        return 16 if self.tiny else side

    def note(self, key: str, found: dict[str, Any]) -> None:
        """Writes a finished measurement and says so in a line."""
        self.results[key] = found
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=2) + "\n")
        part.replace(self.file)
        ms = " ".join(f"{name} {value:.2f}" for name, value in found["ms"].items())
        print(f"{key}: ms {ms}; {found['summary']}", flush=True)

    def compile(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.compile`` as all contestants get it."""
        return torch.compile(run, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """Options of ``torch.compile``."""
        chosen = {"mode": self.mode} if self.mode else {}
        return {"backend": self.backend, "dynamic": False, **chosen}

    def race(self, runs: dict[str, Run], seconds: dict[str, float] | None = None) -> dict[str, float]:
        """Median milliseconds of each contestant, in turns; first calls are noted apart and not counted."""
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(self.rounds + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                for call in range(self.calls + 1):
                    took = self.timed(run)
                    if turn and call:
                        times[name].append(took)
                if not turn and seconds is not None:
                    seconds[name] = round(time.perf_counter() - started, 2)
        return {name: round(statistics.median(values), 4) for name, values in times.items()}

    def timed(self, run: Run) -> float:
        """Milliseconds of one call, waited for."""
        if self.device != "cuda":
            started = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - started)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    def peak(self, run: Run) -> int:
        """Most bytes that a call needs beyond what is allocated before it; 0 without a GPU."""
        if self.device != "cuda":
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def allocated(self) -> int:
        """Bytes in use; 0 without a GPU."""
        return torch.cuda.memory_allocated() if self.device == "cuda" else 0


def graphs() -> int:
    """How many graphs the compiler has made so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
