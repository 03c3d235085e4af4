"""How long one denoiser call takes with 0, 1, 3, 5 adapters, ours and PEFT's, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from loracomp.adapter import Adapter
from loracomp.evaluation.peft_peer import loaded
from loracomp.evaluation.specimen import Bench, specimens
from loracomp.pipeline import attach, denoiser_of, detach

COUNTS = (1, 3, 5)


@dataclass(frozen=True)
class Pace:
    """Times of one number of adapters, medians of interleaved rounds.

    Attributes:
        adapters: How many.
        base: Seconds of a call without adapters.
        ours: Seconds with adapters attached.
        peft: Seconds with ``set_adapters``.
    """

    adapters: int
    base: float
    ours: float
    peft: float

    @property
    def over_base(self) -> float:
        """Ours over no adapter."""
        return self.ours / self.base

    @property
    def over_peft(self) -> float:
        """Ours over PEFT's."""
        return self.ours / self.peft


def measure(
    bench: Bench,
    counts: Sequence[int] = COUNTS,
    rounds: int = 3,
    calls: int = 3,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> list[Pace]:
    """Times the denoiser's first call of a run; all contestants once a round, so that none has a quiet hour.

    Args:
        bench: The pipeline and the settings of the run.
        counts: Numbers of adapters.
        rounds: Rounds that count.
        calls: Calls of each contestant in a round, after one to warm up.
        on_round: Called with (rounds done, rounds in all).
    """
    adapters = specimens(bench.pipe, max(counts), text=False)
    args, kwargs = bench.call()
    denoiser = denoiser_of(bench.pipe)[1]

    def timed() -> list[float]:
        found = []
        for number in range(calls + 1):
            started = _now(denoiser)
            denoiser(*args, **kwargs)
            if number:
                found.append(_now(denoiser) - started)
        return found

    times: dict[str, list[float]] = {}
    for number in range(rounds):
        with torch.inference_mode():
            _round(bench.pipe, adapters, counts, timed, times)
        on_round(number + 1, rounds)
    base = median(times["base"])
    return [Pace(n, base, median(times[f"ours {n}"]), median(times[f"peft {n}"])) for n in counts]


def _round(
    pipe: Any,
    adapters: Sequence[Adapter],
    counts: Sequence[int],
    timed: Callable[[], list[float]],
    times: dict[str, list[float]],
) -> None:
    def note(name: str) -> None:
        times.setdefault(name, []).extend(timed())

    note("base")
    for count in counts:
        attach(pipe, adapters[:count])
        note(f"ours {count}")
        detach(pipe)
    with loaded(pipe, adapters) as names:
        for count in counts:
            pipe.set_adapters(names[:count], [1.0] * count)
            note(f"peft {count}")


def _now(model: Any) -> float:
    if next(model.parameters()).device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
