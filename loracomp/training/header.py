"""What a trained file says about itself: kohya's ``ss_*`` keys, ModelSpec, and our own manifest."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from loracomp import __version__
from loracomp.adapter import Acceleration
from loracomp.bases import Base
from loracomp.training.config import TrainConfig
from loracomp.training.dataset import Dataset
from loracomp.training.survey import tag_counts

DIGEST_DIGITS = 32
"""Hexadecimal digits kept of each picture's SHA-256: 128 bits tell any two apart, at half the size."""


def training_manifest(data: Dataset) -> dict[str, Any]:
    """The pictures by content hash, sorted, and the (subject, style) cells they show."""
    return {
        "fingerprint": data.fingerprint,
        "pictures": sorted(picture.digest[:DIGEST_DIGITS] for picture in data.pictures),
        "cells": [list(cell) for cell in data.cells],
    }


def header(
    config: TrainConfig,
    data: Dataset,
    row: Base,
    *,
    prediction: str,
    resolution: int,
    started: float,
    seconds: float,
    loss: float,
) -> dict[str, str]:
    """Metadata strings of the finished file (keys as sd-scripts and ModelSpec 1.0.1 define them).

    What the tensors themselves say (rank, alpha, architecture, hashes) is added when it is written.

    Args:
        config: The effective config.
        data: What it was trained on.
        row: The base's row.
        prediction: What the denoiser predicts.
        resolution: Side of the training pictures in pixels.
        started: Unix time in seconds at which the run began.
        seconds: Time spent in steps.
        loss: Mean loss of the latest steps.
    """
    own = {
        "loracomp.version": __version__,
        "loracomp.config": config.dump(),
        "loracomp.data": json.dumps(training_manifest(data), sort_keys=True),
        "loracomp.environment": _environment(),
    }
    if config.acceleration:
        own[Acceleration.KEY] = config.acceleration.to_json()
    return {
        **_kohya(config, data, row, resolution, started, seconds, loss),
        **_modelspec(config, row, prediction, resolution, started),
        **own,
    }


@cache
def _environment() -> str:
    packages = {name: version(name) for name in ("torch", "diffusers", "peft")}
    return json.dumps({"python": platform.python_version(), **packages})


def _kohya(
    config: TrainConfig,
    data: Dataset,
    row: Base,
    resolution: int,
    started: float,
    seconds: float,
    loss: float,
) -> dict[str, str]:
    count = len(data.pictures)
    samples = config.steps * config.batch * config.accumulation
    values: dict[str, Any] = {
        "ss_base_model_version": row.kohya_version,
        "ss_output_name": config.name,
        "ss_learning_rate": config.lr,
        "ss_optimizer": f"torch.optim.AdamW(betas={config.betas},weight_decay={config.weight_decay})",
        "ss_lr_scheduler": config.schedule,
        "ss_lr_warmup_steps": config.warmup,
        "ss_steps": config.steps,
        "ss_max_train_steps": config.steps,
        "ss_epoch": samples // count,
        "ss_batch_size_per_device": config.batch,
        "ss_gradient_accumulation_steps": config.accumulation,
        "ss_min_snr_gamma": config.min_snr_gamma,
        "ss_noise_offset": config.noise_offset,
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_max_grad_norm": config.clip,
        "ss_seed": config.seed,
        "ss_num_train_images": count,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_sd_model_name": config.base,
        "ss_training_started_at": started,
        "ss_training_finished_at": started + seconds,
        "ss_tag_frequency": json.dumps({data.folder.resolve().name: dict(tag_counts(data))}),
        "ss_loss": round(loss, 6),
    }
    return {key: str(value) for key, value in values.items()}


def _modelspec(
    config: TrainConfig, row: Base, prediction: str, resolution: int, started: float
) -> dict[str, str]:
    made = datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")
    values = {
        "modelspec.title": config.name,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.date": made,
        "modelspec.tags": config.kind,
        "modelspec.trigger_phrase": ", ".join(config.trigger),
    }
    if prediction != "flow":
        values["modelspec.prediction_type"] = "v" if prediction == "v_prediction" else prediction
    return {key: value for key, value in values.items() if value}
