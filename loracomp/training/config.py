"""The settings of a training run: one typed, frozen value, from presets, a TOML file and ``--set``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from loracomp.adapter import Acceleration
from loracomp.errors import UsageError
from loracomp.training.presets import Kind, prediction_of, preset

Words = tuple[str, ...]
Precision = Literal["auto", "bf16", "fp32"]


class TrainConfig(BaseModel):
    """Everything that decides what a run computes. Unknown keys and wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1, description="What users call the adapter.")
    kind: Kind = Field(description="style, subject or accelerator: chooses the preset.")
    base: str = Field("glyph", description="Known base name, diffusers folder, checkpoint file or hub id.")
    trigger: Words = Field((), description="Words that call the adapter; put before captions without them.")

    rank: int = Field(8, ge=1, le=1024, description="Rank of every layer's update.")
    alpha: float | None = Field(None, gt=0, description="Network alpha; left out, the rank (scale 1).")
    targets: Words = Field((), description="Module suffixes to adapt; left out, those of the base's row.")
    train_text_encoder: bool = Field(False, description="Adapt the CLIP text encoders as well.")

    steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch: int = Field(1, ge=1, description="Pictures in one forward pass.")
    accumulation: int = Field(1, ge=1, description="Forward passes in one step.")
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Learning rate after warm-up.")
    warmup: int = Field(10, ge=0, description="Steps of linear warm-up.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="AdamW's betas.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")

    min_snr_gamma: float | None = Field(None, gt=0, description="Min-SNR loss weights, arXiv:2303.09556.")
    noise_offset: float = Field(0.0, ge=0, le=1, description="Noise per picture and channel added to noise.")
    terminal_share: float = Field(0.0, ge=0, le=1, description="Share of samples put at the last timestep.")
    caption_dropout: float = Field(0.05, ge=0, le=1, description="Share of samples trained without caption.")

    objective: Literal["diffusion", "distillation"] = Field(
        "diffusion", description="Learn the pictures, or to draw like the base in a few steps."
    )
    teacher_guidance: float | None = Field(None, ge=1, description="Distilled guidance; the base's own.")
    teacher_rescale: float | None = Field(None, ge=0, le=1, description="Its rescale; the base's own.")
    teacher_steps: int = Field(4, ge=1, description="The base's steps in one step of an accelerator.")
    student_steps: tuple[int, int] = Field((4, 8), description="Fewest and most steps to draw in.")

    resolution: int | None = Field(None, ge=16, description="Side in pixels; left out, the base's own.")
    flip: bool = Field(False, description="Mirror half of the samples.")
    seed: int = Field(0, ge=0, lt=2**63, description="Decides weights, order, noise and samples.")
    precision: Precision = Field("auto", description="auto: bf16 on a GPU, fp32 on a CPU.")
    gradient_checkpointing: bool = Field(False, description="Less memory, about a third slower.")
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0: on Ctrl-C only.")

    sample_prompts: Words = Field((), description="Prompts of the sample grid; left out, captions.")
    sample_count: int = Field(2, ge=0, le=16, description="Pictures per prompt; 0: no sample grid.")
    sample_steps: int | None = Field(None, ge=1, description="Denoising steps; left out, the base's own.")
    sample_guidance: float | None = Field(None, ge=0, description="Guidance; left out, the base's own.")
    saved_as: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="Number format of the file.")

    @field_validator("trigger", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _tuple([w.strip() for w in value.split(",") if w.strip()] if isinstance(value, str) else value)

    @field_validator("targets", "sample_prompts", mode="before")
    @classmethod
    def _wrap(cls, value: Any) -> Any:
        return _tuple([value] if isinstance(value, str) else value)

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("betas must lie in [0, 1)")
        return value

    @field_validator("student_steps")
    @classmethod
    def _student_steps(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1] <= 100:
            raise ValueError("fewest and most steps must be 1 to 100, in this order")
        return value

    @model_validator(mode="after")
    def _name_is_a_file_name(self) -> TrainConfig:
        if self.name != Path(self.name).name:
            raise ValueError(f"name {self.name!r} must not contain a path")
        return self

    @property
    def scale_alpha(self) -> float:
        """Alpha as a number: the rank unless it was given."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def acceleration(self) -> Acceleration | None:
        """How to draw with the result of a distillation: the middle number of steps, no guidance."""
        return Acceleration(sum(self.student_steps) // 2) if self.objective == "distillation" else None

    def dump(self) -> str:
        """The config as JSON with sorted keys; :func:`load_dump` reads it."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


def make_config(values: Mapping[str, Any]) -> TrainConfig:
    """A config from ``values`` over the preset of their kind and base.

    Raises :class:`UsageError` in one line: the key, what is wrong with it, near names.
    """
    base = values.get("base", TrainConfig.model_fields["base"].default)
    start = preset(str(values.get("kind", "")), str(base))
    config = load_dump(json.dumps({**start, **values}))
    if config.min_snr_gamma is not None and prediction_of(config.base) == "flow":
        raise UsageError("min_snr_gamma: flow-matching bases have no such weights; leave it out")
    if config.objective == "distillation":
        for name in ("min_snr_gamma", "train_text_encoder"):
            if getattr(config, name):
                raise UsageError(f"{name}: has no part in objective=distillation; leave it out")
    return config


def load_dump(text: str) -> TrainConfig:
    """The config that :meth:`TrainConfig.dump` wrote; raises :class:`UsageError`."""
    try:
        return TrainConfig.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(_one_line(error)) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file; raises :class:`UsageError` where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from None


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs as a table; values are TOML, and text where they are not.

    Raises :class:`UsageError` for a pair without ``=``.
    """
    table: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {pair}: write KEY=VALUE, as in --set lr=1e-3")
        try:
            table[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[key.strip()] = text.strip()
    return table


def _tuple(value: Any) -> Any:
    """Lists as tuples: after a validator in Python, strict mode no longer sees a JSON array."""
    return tuple(value) if isinstance(value, list) else value


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = get_close_matches(key, TrainConfig.model_fields, n=2, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(TrainConfig.model_fields)}"
        )
        return f"unknown setting {key!r}; {hint}"
    reason = first["msg"].removeprefix("Value error, ")
    if not key:
        return reason
    if first["type"] == "missing":
        return f"{key}: needed; {TrainConfig.model_fields[key].description}"
    return f"{key}: {reason[0].lower()}{reason[1:]}, got {first['input']!r}"
