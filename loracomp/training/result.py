"""What a run leaves behind: the file, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loracomp import formats
from loracomp.adapter import Adapter
from loracomp.bases import Base, fit
from loracomp.lowrank import LowRank
from loracomp.training.config import TrainConfig
from loracomp.training.dataset import Dataset
from loracomp.training.header import header
from loracomp.training.wiring import layer_shapes, prediction_of

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

KNOWN = 0.9
"""Share of layers that must fit a row for the base to go by its name."""


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        out: The file.
        grid: The sample grid beside it; None where none was asked for.
        adapter: The adapter as saved.
        config: The effective config.
        seconds: Time spent in the loop, in this process and before an interruption.
        loss: Mean loss of the latest steps.
    """

    out: Path
    grid: Path | None
    adapter: Adapter
    config: TrainConfig
    seconds: float
    loss: float

    @property
    def summary(self) -> dict[str, Any]:
        """The run as one JSON object."""
        return {
            "out": str(self.out),
            "samples": str(self.grid) if self.grid else None,
            "name": self.config.name,
            "steps": self.config.steps,
            "seconds": round(self.seconds, 2),
            "step_ms": round(1000 * self.seconds / self.config.steps, 1),
            "loss": round(self.loss, 5),
            "layers": len(self.adapter.layers),
            "bytes": self.out.stat().st_size,
            "digest": self.adapter.digest,
        }


@dataclass(frozen=True, eq=False)
class Origin:
    """What files say about the base that they were trained on.

    Attributes:
        row: The base's row.
        name: Name of the base in the file: the row's, or the pipeline's class for an unknown one.
        shapes: Weight shapes of its layers by classic path.
        prediction: What its denoiser predicts.
    """

    row: Base
    name: str
    shapes: Mapping[str, tuple[int, ...]]
    prediction: str

    @classmethod
    def of(cls, pipe: Any, row: Base) -> Origin:
        """The facts of an open pipeline without layers of ours on it."""
        shapes = layer_shapes(pipe)
        name = row.name if fit(shapes, row.name) > KNOWN else type(pipe).__name__
        return cls(row, name, shapes, prediction_of(pipe))

    def resolution(self, config: TrainConfig) -> int:
        """Side of the training pictures in pixels."""
        return config.resolution or self.row.resolution

    def write(
        self,
        out: Path,
        updates: Mapping[str, LowRank],
        config: TrainConfig,
        data: Dataset,
        *,
        started: float,
        seconds: float,
        loss: float,
    ) -> Trained:
        """Saves the updates of a finished run with a header that says how they were made."""
        metadata = header(
            config,
            data,
            self.row,
            prediction=self.prediction,
            resolution=self.resolution(config),
            started=started,
            seconds=seconds,
            loss=loss,
        )
        adapter = Adapter(updates, self.name, config.name, metadata).to(dtype=DTYPES[config.saved_as])
        formats.save(adapter, out, modules=None if self.name == self.row.name else self.shapes)
        return Trained(out, None, adapter, config, seconds, loss)
