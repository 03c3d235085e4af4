"""A training run from data folder to file: what ``train run`` and ``train resume`` call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loracomp.errors import TrainingError, UsageError
from loracomp.loading import open_base
from loracomp.training import checkpoint
from loracomp.training.config import TrainConfig, load_dump
from loracomp.training.dataset import Dataset, read_dataset
from loracomp.training.loop import Report
from loracomp.training.progress import silent
from loracomp.training.result import Trained
from loracomp.training.session import Session
from loracomp.training.wiring import row_of

Stop = Callable[[], bool]


def never() -> bool:
    """Does not stop a run."""
    return False


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    pipe: Any = None,
    device: str = "auto",
    report: Report = silent,
    stop: Stop = never,
) -> Trained:
    """Trains an adapter on a folder of captioned pictures and saves it.

    Args:
        config: What to do.
        data: The folder.
        out: File to write, ``.safetensors``; samples go beside it.
        pipe: The base if it is open already; it is left as it was.
        device: ``cpu``, ``cuda`` or ``auto``; unused with ``pipe``.
        report: Told of what happens.
        stop: Asked after each step; True saves the state and ends the run.

    Raises:
        TrainingError: The data cannot be used, the loss diverged, or nothing was learned.
        UsageError: The output cannot be written, or no layer has a target's name.
        InterruptedRunError: ``stop`` said so; :func:`resume` goes on.
    """
    dataset = read_dataset(data)
    _check_out(out)
    fresh = checkpoint.Progress(
        step=0,
        config=config.dump(),
        data=str(data.resolve()),
        fingerprint=dataset.fingerprint,
        base="",
        started=time.time(),
        seconds=0.0,
        losses=(),
    )
    return _session(config, dataset, out, fresh, pipe, device, report).run(stop)


def resume(
    out: Path,
    *,
    data: Path | None = None,
    pipe: Any = None,
    device: str = "auto",
    report: Report = silent,
    stop: Stop = never,
) -> Trained:
    """Goes on with an interrupted run; on a CPU the result is bit for bit that of a run without a break.

    Args:
        out: The file that the run was to write.
        data: Where the data lies now, if it was moved.
        pipe: As for :func:`train`.
        device: As for :func:`train`.
        report: As for :func:`train`.
        stop: As for :func:`train`.

    Raises:
        TrainingError: There is no checkpoint, or data or base are no longer the same.
    """
    begun = checkpoint.read_progress(out)
    folder = data or Path(begun.data)
    dataset = read_dataset(folder)
    if dataset.fingerprint != begun.fingerprint:
        raise TrainingError(
            f"{folder}: pictures or captions changed since the run began; restore them or start the run anew"
        )
    return _session(load_dump(begun.config), dataset, out, begun, pipe, device, report).run(stop)


def _session(
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    begun: checkpoint.Progress,
    pipe: Any,
    device: str,
    report: Report,
) -> Session:
    half = half_precision(config, device if pipe is None else str(pipe.device))
    if pipe is None:
        pipe = open_base(config.base, dtype="bf16" if half else "fp32", device=device)
    if half and pipe.device.type == "cpu" and "512" not in torch.backends.cpu.get_cpu_capability():
        report({"event": "note", "text": "this CPU emulates bf16, which is many times slower than fp32"})
    return Session(pipe, row_of(pipe), config, dataset, out, begun, report, half)


def half_precision(config: TrainConfig, device: str) -> bool:
    """Whether a run computes in bf16: when told so, else on CUDA devices that have it.

    Most CPUs emulate bf16, some thirty times slower than fp32.
    """
    if config.precision != "auto":
        return config.precision == "bf16"
    on_gpu = torch.cuda.is_available() and device.startswith(("cuda", "auto"))
    return on_gpu and torch.cuda.is_bf16_supported()


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: must end in .safetensors")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f"{out.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from None
    state = checkpoint.state_path(out)
    if state.exists():
        raise UsageError(
            f"{state.parent}: an interrupted run; go on with `loracomp train resume {out}`, or remove it"
        )
