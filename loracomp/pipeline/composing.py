"""One call from adapters to images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.fusion.program import Program
from loracomp.fusion.regions import Masks
from loracomp.pipeline.attachment import Attachment, attach, detach
from loracomp.pipeline.facts import resolve_all

StepCallback = Callable[[int, int], None]


@contextmanager
def _bar(pipe: Any, on_step: StepCallback | None, steps: int) -> Iterator[dict[str, Any]]:
    """Arguments that report steps to ``on_step`` instead of diffusers' own progress bar."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)

    def report(_: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, steps)
        return values

    try:
        yield {"callback_on_step_end": report}
    finally:
        pipe.set_progress_bar_config(**({"disable": False} | before))


def compose(
    pipe: Any,
    prompt: str,
    adapters: Sequence[Adapter] = (),
    method: Program | str | Sequence[Program] = "merge",
    weights: Sequence[float] | None = None,
    *,
    masks: Masks = (),
    seed: int | Sequence[int] = 0,
    batch: int = 1,
    on_step: StepCallback | None = None,
    on_attach: Callable[[Attachment], None] | None = None,
    **settings: Any,
) -> list[Any]:
    """Draws images with several adapters and leaves the pipeline as it was.

    What a method has to know about the adapters and is not in its options is found here
    (:mod:`loracomp.pipeline.facts`); what would have to be sampled first counts as unknown.

    Args:
        pipe: A pipeline, for example from :func:`loracomp.open_base`.
        prompt: What to draw.
        adapters: Adapters to compose; none draws with the base alone.
        method: A program, the name of a method, or one program per image of the batch.
        weights: One strength per adapter; 1.0 each by default.
        masks: Where each adapter acts, as in :func:`attach`.
        seed: Seed of the first image, image i of a batch having seed + i; or one seed per image.
        batch: Number of images, drawn together.
        on_step: Called with (steps done, steps in all) after each step.
        on_attach: Called with the attachment before the first step.
        **settings: Further arguments of the pipeline's call (``num_inference_steps``, …).

    Returns:
        PIL images, ``batch`` of them.
    """
    steps = int(settings.get("num_inference_steps", 0))
    seeds = range(seed, seed + batch) if isinstance(seed, int) else seed
    generators = [torch.Generator().manual_seed(number) for number in seeds]
    if adapters:
        attached = attach(pipe, adapters, resolve_all(pipe, prompt, adapters, method), weights, masks=masks)
    try:
        if adapters and on_attach is not None:
            on_attach(attached)
        with _bar(pipe, on_step, steps) as reporting, torch.inference_mode():
            return list(
                pipe(
                    prompt=prompt, num_images_per_prompt=batch, generator=generators, **reporting, **settings
                ).images
            )
    finally:
        if adapters:
            detach(pipe)
