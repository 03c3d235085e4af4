"""What a denoiser predicts in a run, and batches of images from seeds of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loracomp.pipeline import denoiser_of


def relative(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ / ‖reference‖."""
    return float((value - reference).norm() / reference.norm())


def images(pipe: Any, prompts: list[str], seeds: list[int], **options: Any) -> Tensor:
    """Latents of a batch, image i from its own seed."""
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 32, "width": 32}
    if denoiser_of(pipe)[0] == "transformer":
        settings["max_sequence_length"] = 16
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        out = pipe(prompts, generator=generators, output_type="latent", **(settings | options))
    return out.images.float()


class Predictions(list[Tensor]):
    """What the denoiser hands to the pipeline."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.model = denoiser_of(pipe)[1]

    def __enter__(self) -> Predictions:
        self.inner = self.model.forward

        def spy(*args: Any, **kwargs: Any) -> Any:
            output = self.inner(*args, **kwargs)
            self.append(output[0].clone())
            return output

        self.model.forward = spy
        return self

    def __exit__(self, *_: object) -> None:
        self.model.forward = self.inner
