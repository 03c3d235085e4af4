"""One run with its base open: data encoded, layers injected, loop run, file and samples written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loracomp.bases import Base
from loracomp.errors import ResourceError, TrainingError
from loracomp.loading import defaults
from loracomp.pipeline import denoiser_of
from loracomp.training import checkpoint, samples
from loracomp.training.cache import Encoded, default_cache, encode, fingerprint
from loracomp.training.config import TrainConfig
from loracomp.training.dataset import Dataset
from loracomp.training.distillation import Distillation
from loracomp.training.inject import Injected, inject
from loracomp.training.interrupt import InterruptedRunError
from loracomp.training.loop import Loop, Report
from loracomp.training.objective import Objective
from loracomp.training.result import Origin, Trained
from loracomp.training.survey import describe


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


def objective_of(
    pipe: Any, encoded: Encoded, config: TrainConfig, resolution: int, autocast: bool
) -> Objective:
    """The loss that a complete config asks for; ``resolution`` in pixels, ``autocast`` for bf16."""
    if config.objective == "diffusion":
        return Objective(pipe, encoded, config.min_snr_gamma, autocast, resolution)
    return Distillation(
        pipe,
        encoded,
        None,
        autocast,
        resolution,
        guidance=config.teacher_guidance or 1.0,
        rescale=config.teacher_rescale or 0.0,
        teacher_steps=config.teacher_steps,
        student_steps=config.student_steps,
    )


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
        self.origin = Origin.of(pipe, row)
        base = fingerprint(self._denoiser)
        if begun.base not in ("", base):
            raise TrainingError(f"{config.base}: not the weights that the run began with; start the run anew")
        self.begun = replace(begun, base=base, config=self.config.dump())

    @property
    def resolution(self) -> int:
        """Side of the training pictures in pixels."""
        return self.origin.resolution(self.config)

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
        return objective_of(self.pipe, encoded, config, self.resolution, self.autocast)

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
        updates = injected.updates()
        facts = {"started": self.begun.started, "seconds": loop.seconds, "loss": loss}
        trained = self.origin.write(self.out, updates, self.config, self.data, **facts)
        checkpoint.discard(self.out)
        if self.config.sample_count:
            return replace(trained, grid=self._sample(injected))
        return trained

    def _sample(self, injected: Injected) -> Path:
        path = self.out.with_suffix(".png")
        return samples.write_sheet(
            self.pipe,
            self.config,
            self.row,
            self.captions,
            path,
            alone=injected.silent,
            autocast=self.autocast,
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
