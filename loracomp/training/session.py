"""One run with its base open: data encoded, layers injected, loop run, file and samples written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loracomp import formats
from loracomp.adapter import Adapter
from loracomp.bases import Base, fit
from loracomp.errors import ResourceError, TrainingError
from loracomp.loading import defaults
from loracomp.pipeline import denoiser_of
from loracomp.training import checkpoint, samples
from loracomp.training.cache import default_cache, encode, fingerprint
from loracomp.training.config import TrainConfig
from loracomp.training.dataset import Dataset
from loracomp.training.distillation import Distillation
from loracomp.training.header import header
from loracomp.training.inject import Injected, inject
from loracomp.training.interrupt import InterruptedRunError
from loracomp.training.loop import Loop, Report
from loracomp.training.objective import Objective
from loracomp.training.survey import describe
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


def complete(config: TrainConfig, row: Base) -> TrainConfig:
    """The config with everything filled in that the base decides."""
    own = defaults(config.base, row)
    chosen: dict[str, Any] = {}
    if fast := config.acceleration:
        chosen["teacher_guidance"] = config.teacher_guidance or own["guidance"]
        rescale = config.teacher_rescale
        chosen["teacher_rescale"] = own["guidance_rescale"] if rescale is None else rescale
        own |= {"steps": fast.steps, "guidance": fast.guidance}
    chosen |= {
        "targets": config.targets or row.targets,
        "resolution": config.resolution or row.resolution,
        "sample_steps": config.sample_steps or own["steps"],
        "sample_guidance": own["guidance"] if config.sample_guidance is None else config.sample_guidance,
    }
    return config.model_copy(update=chosen)


class Session:
    """A run on an open pipeline, from its beginning or from a checkpoint.

    Args:
        pipe: The base; left as it was by :meth:`run`.
        row: Its row.
        config: What to do.
        data: What to learn from.
        out: File to write.
        begun: Where the run stands; step 0 for a new one.
        report: Told of what happens.
        autocast: Whether to compute in bf16.

    Raises:
        TrainingError: The base's weights are not those that the run began with.
    """

    def __init__(
        self,
        pipe: Any,
        row: Base,
        config: TrainConfig,
        data: Dataset,
        out: Path,
        begun: checkpoint.Progress,
        report: Report,
        autocast: bool,
    ) -> None:
        self.pipe, self.row, self.data, self.out, self.report = pipe, row, data, out, report
        self.config = complete(config, row)
        self.autocast = autocast
        self.shapes = layer_shapes(pipe)
        base = fingerprint(self._denoiser)
        if begun.base not in ("", base):
            raise TrainingError(f"{config.base}: not the weights that the run began with; start the run anew")
        self.begun = replace(begun, base=base, config=self.config.dump())

    @property
    def resolution(self) -> int:
        """Side of the training pictures in pixels."""
        return self.config.resolution or self.row.resolution

    @property
    def _denoiser(self) -> Any:
        return denoiser_of(self.pipe)[1]

    @property
    def captions(self) -> list[str]:
        """One caption per picture, as trained."""
        return self.data.captions(self.config.trigger, self.config.name)

    def run(self, stop: Callable[[], bool]) -> Trained:
        """Trains, saves and samples.

        Raises:
            TrainingError: The loss diverged or nothing was learned.
            InterruptedRunError: ``stop`` said so; the state is saved.
            ResourceError: The device's memory is too small.
        """
        for line in describe(self.data).advice(self.resolution):
            self.report({"event": "note", "text": line})
        objective = self._objective()
        injected = self._inject()
        if isinstance(objective, Distillation):
            objective.silent = injected.silent
        try:
            self.report(self._start_event(objective, injected))
            loop = self._loop(objective, injected, stop)
            if not loop.run():
                raise InterruptedRunError(loop.step, self.config.steps, self.out)
            return self._finish(loop, injected)
        except torch.OutOfMemoryError as error:
            hint = "lower batch, raise accumulation, or set gradient_checkpointing=true"
            raise ResourceError(f"out of memory at batch {self.config.batch}; {hint}") from error
        finally:
            injected.remove()
            if self.config.gradient_checkpointing:
                self._denoiser.disable_gradient_checkpointing()

    def _objective(self) -> Objective:
        config = self.config
        encoded = encode(
            self.pipe,
            self.data,
            self.captions,
            resolution=self.resolution,
            variants=2 if config.flip else 1,
            with_text=not config.train_text_encoder,
            cache=default_cache(),
        )
        if config.objective == "diffusion":
            return Objective(self.pipe, encoded, config.min_snr_gamma, self.autocast, self.resolution)
        return Distillation(
            self.pipe,
            encoded,
            None,
            self.autocast,
            self.resolution,
            guidance=config.teacher_guidance or 1.0,
            rescale=config.teacher_rescale or 0.0,
            teacher_steps=config.teacher_steps,
            student_steps=config.student_steps,
        )

    def _inject(self) -> Injected:
        config = self.config
        injected = inject(
            self.pipe,
            rank=config.rank,
            alpha=config.scale_alpha,
            targets=config.targets,
            text_encoders=self.row.text_encoders if config.train_text_encoder else (),
            seed=config.seed,
        )
        if config.gradient_checkpointing:
            self._denoiser.enable_gradient_checkpointing()
        return injected

    def _loop(self, objective: Objective, injected: Injected, stop: Callable[[], bool]) -> Loop:
        def save(loop: Loop) -> None:
            now = replace(self.begun, step=loop.step, seconds=loop.seconds, losses=loop.losses)
            folder = checkpoint.write_state(self.out, now, loop.weights, loop.optimizer).parent
            self.report(
                {"event": "checkpoint", "step": loop.step, "text": f"saved step {loop.step} in {folder}"}
            )

        loop = Loop(self.config, objective, injected.tensors, self.report, stop, save)
        if self.begun.step:
            checkpoint.restore(self.out, self.begun.step, loop.weights, loop.optimizer)
            loop.step, loop.seconds = self.begun.step, self.begun.seconds
            loop.recent.extend(torch.tensor(value) for value in self.begun.losses)
        return loop

    def _finish(self, loop: Loop, injected: Injected) -> Trained:
        loss = sum(loop.losses) / len(loop.losses)
        metadata = header(
            self.config,
            self.data,
            self.row,
            prediction=prediction_of(self.pipe),
            resolution=self.resolution,
            started=self.begun.started,
            seconds=loop.seconds,
            loss=loss,
        )
        name, table = self._place()
        adapter = Adapter(injected.updates(), name, self.config.name, metadata)
        adapter = adapter.to(dtype=DTYPES[self.config.saved_as])
        formats.save(adapter, self.out, modules=table)
        checkpoint.discard(self.out)
        picture = self._sample(injected) if self.config.sample_count else None
        return Trained(self.out, picture, adapter, self.config, loop.seconds, loss)

    def _place(self) -> tuple[str, dict[str, tuple[int, ...]] | None]:
        """Name of the base, and its layers where it is none of the known ones."""
        if fit(self.shapes, self.row.name) > KNOWN:
            return self.row.name, None
        return type(self.pipe).__name__, self.shapes

    def _sample(self, injected: Injected) -> Path:
        """Rows of prompts: the base alone with the first seed, then the adapter with each seed."""
        prompts = self.config.sample_prompts or samples.spread_prompts(self.captions)
        seeds = [self.config.seed + index for index in range(self.config.sample_count)]
        with injected.silent():
            plain = self._draw(prompts, seeds[:1])
        rows = [[*a, *b] for a, b in zip(plain, self._draw(prompts, seeds), strict=True)]
        return samples.write_picture(samples.grid(rows), self.out.with_suffix(".png"))

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[list[Any]]:
        return samples.draw_samples(
            self.pipe,
            prompts,
            seeds,
            autocast=self.autocast,
            height=self.resolution,
            width=self.resolution,
            num_inference_steps=self.config.sample_steps,
            guidance_scale=self.config.sample_guidance,
            guidance_rescale=defaults(self.config.base, self.row)["guidance_rescale"],
        )

    def _start_event(self, objective: Objective, injected: Injected) -> dict[str, Any]:
        config = self.config
        return {
            "event": "start",
            "name": config.name,
            "kind": config.kind,
            "base": config.base,
            "pictures": len(self.data.pictures),
            "steps": config.steps,
            "rank": config.rank,
            "layers": len(injected.layers),
            "parameters": sum(parameter.numel() for parameter in injected.tensors.values()),
            "precision": "bf16" if self.autocast else "fp32",
            "device": str(objective.device),
        }
