"""The state of an unfinished training of a gate: one safetensors file, replaced in one move."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from loracomp.errors import TrainingError
from loracomp.training.gate.settings import Settings

_KEY = "loracomp.gate.state"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def state_path(out: Path) -> Path:
    """The file that holds the state of the run that will write ``out``."""
    return out.with_name(f"{out.name}.state")


def write(
    out: Path, settings: Settings, step: int, seconds: float, values: nn.Parameter, average: Tensor,
    optimizer: torch.optim.Optimizer,
) -> None:  # fmt: skip
    """Saves a run's state; raises :class:`TrainingError` where the folder cannot be written."""
    from safetensors.torch import save

    tensors = {"values": values.detach(), "average": average}
    for name in _MOMENTS:
        held = optimizer.state.get(values, {}).get(name)
        tensors[name] = torch.zeros_like(values) if held is None else held
    payload = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"settings": _told(settings), "step": step, "seconds": seconds}
    path = state_path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            file.write(save(payload, {_KEY: json.dumps(header)}))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})") from None


def restore(
    out: Path, settings: Settings, values: nn.Parameter, average: Tensor, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Puts a saved state back, if there is one; steps done and seconds spent.

    Raises:
        TrainingError: It is damaged, or of a run with other settings.
    """
    from safetensors import SafetensorError, safe_open

    path = state_path(out)
    if not path.is_file():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in ("values", "average", *_MOMENTS)}
        if header["settings"] != _told(settings) or tensors["values"].shape != values.shape:
            raise TrainingError(f"{path}: of a run with other settings; remove it, or choose another --out")
        with torch.no_grad():
            values.copy_(tensors["values"])
            average.copy_(tensors["average"])
        moments = {name: tensors[name].to(values.device) for name in _MOMENTS}
        step = torch.tensor(float(header["step"]), device=values.device)
        optimizer.state[values] = {"step": step, **moments}
        return int(header["step"]), float(header["seconds"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: damaged state ({error}); remove it and start anew") from None


def discard(out: Path) -> None:
    """Removes the state of a finished run."""
    state_path(out).unlink(missing_ok=True)


def _told(settings: Settings) -> str:
    """What must be the same for a run to go on; it may be given more time."""
    parts = asdict(settings)
    for name in ("minutes", "steps", "every", "measured"):
        del parts[name]
    return json.dumps(parts, sort_keys=True)
