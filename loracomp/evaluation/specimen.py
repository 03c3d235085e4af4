"""Synthetic adapters for any base, and short runs to compare: what a check of a base model works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank
from loracomp.pipeline import base_of, denoiser_of, layers_of, weight_shape
from loracomp.pipeline.layers import default_targets

SIZE = 0.3
"""Norm of an update over that of the weight it changes: as strong as a strong style."""
TEXT_TARGETS = ("q_proj", "v_proj")
_TYPICAL = 0.02
"""Standard deviation of weights where they are packed and cannot be read."""


@dataclass(frozen=True)
class Shot:
    """One run: the last latents of all images, in float32 on the CPU, and the pictures."""

    latents: Tensor
    pictures: tuple[Any, ...]


@dataclass(frozen=True)
class Bench:
    """A pipeline with the settings of all its runs.

    Attributes:
        pipe: The pipeline, nothing attached.
        prompt: What is drawn.
        steps: Denoising steps.
        side: Pixels of either side.
        guidance: Guidance scale.
        seed: Seed of every image.
    """

    pipe: Any
    prompt: str = "a red apple on a wooden table"
    steps: int = 4
    side: int = 512
    guidance: float = 4.0
    seed: int = 1

    @torch.inference_mode()
    def shoot(self, images: int = 1, before: Callable[[int], None] | None = None) -> Shot:
        """Draws with the pipeline as it is, all images from one seed.

        Args:
            images: Images in the batch.
            before: Called with the number of each step right before it.
        """
        last: list[Tensor] = []

        def after(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
            last[:] = [values["latents"]]
            if before is not None and step + 1 < self.steps:
                before(step + 1)
            return values

        if before is not None:
            before(0)
        self.pipe.set_progress_bar_config(disable=True)
        pictures = self.pipe(
            prompt=self.prompt,
            num_images_per_prompt=images,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            width=self.side,
            height=self.side,
            generator=[torch.Generator().manual_seed(self.seed) for _ in range(images)],
            callback_on_step_end=after,
        ).images
        return Shot(last[0].float().cpu(), tuple(pictures))

    @torch.inference_mode()
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the denoiser's first call in a run."""
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def spy(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args, kwargs))

        handle = denoiser_of(self.pipe)[1].register_forward_pre_hook(spy, with_kwargs=True)
        try:
            replace(self, steps=1).shoot()
        finally:
            handle.remove()
        return seen[0]


def specimens(pipe: Any, count: int, rank: int = 8, seed: int = 0, text: bool = True) -> list[Adapter]:
    """Adapters with normal factors on the layers that adapters for this base change as a rule.

    Args:
        pipe: The pipeline.
        count: How many.
        rank: Their rank.
        seed: Of the first one's factors.
        text: Whether they change the text encoders too.
    """
    name = denoiser_of(pipe)[0]
    suffixes = default_targets(pipe)
    layers = {
        path: module
        for path, module in layers_of(pipe).items()
        if (path.startswith(f"{name}.") and path.endswith(suffixes))
        or (text and path.startswith("text_encoder") and path.endswith(TEXT_TARGETS))
    }
    base = base_of(pipe)
    return [
        Adapter(
            {path: _layer(module, rank, torch.Generator().manual_seed(997 * (seed + number) + place))
             for place, (path, module) in enumerate(layers.items())},
            base,
            f"specimen {number + 1}",
        )
        for number in range(count)
    ]  # fmt: skip


def _layer(module: Any, rank: int, generator: torch.Generator) -> LowRank:
    shape, weight = weight_shape(module), module.weight
    plain = weight.is_floating_point() and tuple(weight.shape) == shape and weight.device.type != "meta"
    size = float(weight.detach().float().std()) if plain else _TYPICAL
    down = torch.randn((rank, *shape[1:]), generator=generator)
    up = torch.randn((shape[0], rank, *((1,) * (len(shape) - 2))), generator=generator)
    # Entries of up · down have the variance `rank`.
    return LowRank(down, up * (SIZE * size / rank**0.5))


def light(adapters: Sequence[Adapter], budget: int) -> list[Adapter]:
    """The adapters cut down, evenly over the model, to layers of ``budget`` weights at most."""
    paths = sorted(adapters[0].layers)
    sizes = {path: torch.Size(adapters[0].layers[path].weight_shape).numel() for path in paths}
    stride = max(1, -(-sum(sizes.values()) // budget))
    kept = paths[::stride]
    return [replace(adapter, layers={path: adapter.layers[path] for path in kept}) for adapter in adapters]


def relative(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ / ‖reference‖."""
    return float((value - reference).norm() / reference.norm().clamp_min(1e-30))
