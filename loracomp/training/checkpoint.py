"""The state of an unfinished run: one safetensors file that is replaced in one move.

There are no generator states and no sampler state in it, because all draws are functions of seed and
step (:mod:`loracomp.training.order`); and no pickle, so that a checkpoint from elsewhere runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from loracomp.errors import TrainingError

KEY = "loracomp.training"
FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimiser steps done; the next step's number.
        config: The effective config as JSON.
        data: Path of the data folder.
        fingerprint: Fingerprint of the data.
        base: Fingerprint of the denoiser's weights.
        started: Unix time in seconds at which the run began.
        seconds: Time spent in steps.
        losses: Losses of the latest steps.
    """

    step: int
    config: str
    data: str
    fingerprint: str
    base: str
    started: float
    seconds: float
    losses: tuple[float, ...]


def state_path(out: Path) -> Path:
    """The file that holds the state of the run that will write ``out``."""
    return out.with_name(f"{out.name}.ckpt") / "state.safetensors"


def write_state(
    out: Path, progress: Progress, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Path:
    """Saves a run's state; a crash leaves the state before it or the new one, never half of it.

    Raises:
        TrainingError: The folder cannot be written.
    """
    from safetensors.torch import save

    tensors = {f"weight/{name}": parameter.detach() for name, parameter in weights.items()}
    for name, parameter in weights.items():
        for moment in MOMENTS:
            value = optimizer.state.get(parameter, {}).get(moment)
            tensors[f"{moment}/{name}"] = torch.zeros_like(parameter) if value is None else value
    payload = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    header = {KEY: json.dumps({"format": FORMAT, **asdict(progress)})}
    path = state_path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            file.write(save(payload, header))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def read_progress(out: Path) -> Progress:
    """Where the run of ``out`` stands.

    Raises:
        TrainingError: There is no state, or it is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    path = state_path(out)
    if not path.is_file():
        done = "; the run is complete" if out.is_file() else ""
        raise TrainingError(f"{path}: no such checkpoint{done}; resume takes the --out of an interrupted run")
    try:
        with safe_open(path, framework="pt") as file:
            table = json.loads((file.metadata() or {})[KEY])
        if table.pop("format") != FORMAT:
            raise TrainingError(f"{path}: made by another version of loracomp; start the run anew")
        return Progress(**{**table, "losses": tuple(table["losses"])})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: damaged checkpoint ({error}); start the run anew") from None


def restore(
    out: Path, step: int, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Puts saved weights and moments back, bit for bit.

    Raises:
        TrainingError: The state does not fit the layers.
    """
    from safetensors.torch import load_file

    saved = load_file(state_path(out))
    for name, parameter in weights.items():
        stored = [saved.get(f"{part}/{name}") for part in ("weight", *MOMENTS)]
        if any(value is None or value.shape != parameter.shape for value in stored):
            raise TrainingError(f"{state_path(out)}: does not fit layer {name}; the base or targets differ")
        weight, first, second = (value for value in stored if value is not None)
        parameter.data.copy_(weight)
        moved: dict[str, Tensor] = {m: v.to(parameter) for m, v in zip(MOMENTS, (first, second), strict=True)}
        optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **moved}


def discard(out: Path) -> None:
    """Removes the state of a finished run, and its folder unless something else lies in it."""
    path = state_path(out)
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
