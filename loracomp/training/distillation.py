"""Training an accelerator: the base draws with guidance in small steps, the adapter learns to leap.

Progressive distillation (arXiv:2202.00512) of segments of the trajectory into a low-rank update, as
LCM-LoRA (arXiv:2311.05556) does with consistency: the base alone, guided, walks a segment in several
steps; one step of the adapted denoiser without guidance has to land at the same place. The segments
are the steps of runs of the lengths that the accelerator is for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.training import losses
from loracomp.training.objective import Batch, Objective
from loracomp.training.paths import Arc, Line, Path, guided, segments
from loracomp.training.wiring import States


@dataclass(eq=False)
class Distillation(Objective):
    """Loss of batches against the base's own guided steps.

    Attributes:
        guidance: Guidance scale of the teacher.
        rescale: Its guidance rescale, in [0, 1].
        teacher_steps: Steps of the teacher in one step of the student.
        student_steps: Fewest and most steps of the student's runs.
        silent: Gives a context in which the base is alone; set when the layers are on.

    Raises:
        UsageError: The base's guidance is an input of the denoiser and cannot be taught this way.
    """

    guidance: float = 1.0
    rescale: float = 0.0
    teacher_steps: int = 4
    student_steps: tuple[int, int] = (4, 8)
    silent: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.config.get("guidance_embeds", False):
            name = type(self.pipe).__name__
            raise UsageError(f"objective=distillation: {name} has guidance distilled into it already")
        if self.prediction == "flow":
            self.path: Path = Line(self.levels, self.shift)
        else:
            final = float(getattr(self.pipe.scheduler, "final_alpha_cumprod", 1.0))
            self.path = Arc.of(self.alphas, final, self.prediction)

    def errors(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.errors`."""
        clean, noise = batch.clean, batch.noise
        now, then = segments(batch.level, *self.student_steps, first=batch.terminal)
        # Runs begin with pure noise, even where the scheduler leaves a little signal at its end.
        whole = losses.spread(now, clean) == 1
        noisy = torch.where(whole, noise, self.path.noised(clean, noise, now))
        with self._precision():
            states = self._text(batch)
            target = self._target(noisy, now, then, states)
            predicted = self._predict(noisy, self.path.timesteps(now), states).float()
        velocity = self.path.velocity(predicted, noisy, now)
        return losses.weighted_errors(velocity, target, self.path.weights(now))

    @torch.no_grad()
    def _target(self, noisy: Tensor, now: Tensor, then: Tensor, states: States) -> Tensor:
        """The velocity whose one step lands where the teacher's several steps do."""
        if self.guidance != 1:
            empty = self._encoded(torch.full((len(noisy),), len(self.data.captions) - 1))
            states = {name: torch.cat([empty[name], state]) for name, state in states.items()}
        places = [now + (then - now) * (done / self.teacher_steps) for done in range(self.teacher_steps)]
        landed = noisy
        with self.silent():
            for here, there in pairwise([*places, then]):
                velocity = self.path.velocity(self._teach(landed, here, states), landed, here)
                landed = self.path.step(landed, velocity, here, there)
        return self.path.implied(noisy, landed, now, then)

    def _teach(self, noisy: Tensor, shares: Tensor, states: States) -> Tensor:
        """The base's guided prediction, as the denoiser gives it."""
        times = self.path.timesteps(shares)
        if self.guidance == 1:
            return self._predict(noisy, times, states).float()
        both = self._predict(noisy.repeat(2, 1, 1, 1), times.repeat(2), states).float()
        plain, told = both.chunk(2)
        return guided(plain, told, self.guidance, self.rescale)
