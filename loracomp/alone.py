"""A base made ready to draw with one adapter at a time, many of them in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from loracomp.adapter import Adapter
from loracomp.bases import get_base
from loracomp.errors import FormatError
from loracomp.fusion import Program
from loracomp.library import cards, open_accelerator
from loracomp.loading import defaults, open_base
from loracomp.pipeline import attach, base_of, detach

STEPS = 12
"""Most steps without an accelerator: small pictures to look at, not to keep."""
_PIXELS = {"cpu": 32 * 128**2, "cuda": 256 * 128**2}


@dataclass(frozen=True)
class Alone:
    """Draws with each adapter alone, at strength 1.

    Attributes:
        pipe: The adapters' base.
        accelerator: An adapter of few steps that is there in all images.
        batch: Images at once, at most.
        settings: Further arguments of the pipeline's call (``num_inference_steps``, ``guidance_scale``, …).
    """

    pipe: Any
    accelerator: Adapter | None = None
    batch: int = 32
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def base(self) -> str:
        """Name of the pipeline's base."""
        return base_of(self.pipe)

    def __call__(
        self, adapters: Sequence[Adapter], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Any]:
        """PIL images, adapter by adapter and in the order of the prompts, each with its prompt's seed.

        What others are drawn in the same batch makes no difference but for rounding; the pipeline is left
        without adapters.

        Raises:
            BaseMismatchError: An adapter does not fit the base.
            FloatingPointError: An image has values that are not finite.
        """
        size = max(1, self.batch // max(1, len(prompts)))
        with _quiet(self.pipe), torch.inference_mode():
            return [
                image
                for start in range(0, len(adapters), size)
                for image in self._group(adapters[start : start + size], prompts, seeds)
            ]

    def plain(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        """PIL images of the base without any adapter but the accelerator, each prompt with its seed.

        Raises:
            FloatingPointError: An image has values that are not finite.
        """
        wanted = list(zip(prompts, seeds, strict=True))
        with _quiet(self.pipe), torch.inference_mode():
            if self.accelerator:
                attach(self.pipe, [self.accelerator])
            try:
                starts = range(0, len(wanted), self.batch)
                return [image for at in starts for image in self._images(wanted[at : at + self.batch])]
            finally:
                if self.accelerator:
                    detach(self.pipe)

    def _group(self, group: Sequence[Adapter], prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Any]:
        fast = [self.accelerator] if self.accelerator else []
        count, each = len(group), len(prompts)
        rows = [tuple(float(i == j) for j in range(count)) + (1.0,) * len(fast) for i in range(count)]
        programs = [Program("merge", row) for row in rows for _ in range(each)]
        # One adapter has one program, whatever number of its images is drawn at once.
        attach(self.pipe, [*group, *fast], programs if count > 1 else programs[0])
        try:
            wanted = [(prompt, seed) for _ in group for prompt, seed in zip(prompts, seeds, strict=True)]
            most = len(wanted) if count > 1 else self.batch
            for start in range(0, len(wanted), most):
                yield from self._images(wanted[start : start + most])
        finally:
            detach(self.pipe)

    def _images(self, wanted: Sequence[tuple[str, int]]) -> list[Any]:
        from PIL import Image

        sources = [torch.Generator().manual_seed(seed) for _, seed in wanted]
        words = [prompt for prompt, _ in wanted]
        found = self.pipe(prompt=words, generator=sources, output_type="pt", **self.settings).images
        if not bool(found.isfinite().all()):
            raise FloatingPointError("images with values that are not finite")
        levels = (found.float() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in levels]


def open_alone(
    base: str = "glyph", source: str | None = None, *, dtype: str = "auto", device: str = "auto"
) -> Alone:
    """A base with its shipped accelerator where there is one, else with at most :data:`STEPS` steps.

    Args:
        base: A key of :data:`loracomp.bases.BASES`.
        source: Where the base is, as in :func:`loracomp.loading.open_base`; its name where None.
        dtype: See :func:`loracomp.loading.open_base`.
        device: See :func:`loracomp.loading.open_base`.

    Raises:
        ResourceError: The base is not there.
        FormatError: ``source`` is no pipeline, or one of another base.
        UnknownNameError: No such base.
    """
    row = get_base(base)
    pipe = open_base(source or base, dtype=dtype, device=device)
    if base_of(pipe) != base:
        raise FormatError(f"{source}: a pipeline of {base_of(pipe)}, not of {base}; name the base's folder")
    names = [card.name for card in cards() if (card.kind, card.base) == ("accelerator", base)]
    fast = open_accelerator(names[0], base) if names else None
    batch = max(1, _PIXELS.get(pipe.device.type, _PIXELS["cpu"]) // row.resolution**2)
    if fast is not None and fast.accelerator is not None:
        few = fast.accelerator
        return Alone(pipe, fast, batch, {"num_inference_steps": few.steps, "guidance_scale": few.guidance})
    own = defaults(source or base, row)
    settings = {"num_inference_steps": min(own["steps"], STEPS), "guidance_scale": own["guidance"]}
    if own["guidance_rescale"]:
        settings["guidance_rescale"] = own["guidance_rescale"]
    return Alone(pipe, None, batch, settings)


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar, which is put back as it was."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
