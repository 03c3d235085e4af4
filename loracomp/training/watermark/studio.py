"""Drawing for measurements: the same prompts and seeds for every adapter, in batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.evaluation.pixels import as_tensor
from loracomp.loading import defaults
from loracomp.pipeline import attach, denoiser_of, detach
from loracomp.training.watermark.codec_loss import Latents
from loracomp.training.wiring import prediction_of, row_of


@dataclass(eq=False)
class Studio:
    """A base, and what is drawn with it.

    Attributes:
        pipe: The base.
        prompts: One picture each.
        seed: Seed of the first; the next has the next.
        steps: Denoising steps; the base's own where None.
        guidance: Guidance scale; the base's own where None.
        side: Side in pixels; the base's own where None.
        batch: Pictures at once.
    """

    pipe: Any
    prompts: Sequence[str]
    seed: int = 1000
    steps: int | None = None
    guidance: float | None = None
    side: int | None = None
    batch: int = 16

    def draw(
        self, adapters: Sequence[Adapter] = (), method: Any = "merge", weights: Sequence[float] | None = None
    ) -> Tensor:
        """Pictures (prompts, 3, H, W) in [0, 1] on the CPU."""
        with self._attached(adapters, method, weights):
            rows = [self._drawn(start) for start in range(0, len(self.prompts), self.batch)]
        return as_tensor([image for row in rows for image in row])

    @torch.inference_mode()
    def _drawn(self, start: int) -> list[Any]:
        texts = list(self.prompts[start : start + self.batch])
        sources = [torch.Generator().manual_seed(self.seed + start + n) for n in range(len(texts))]
        known = inspect.signature(self.pipe.__call__).parameters
        settings = {key: value for key, value in self.settings().items() if key in known}
        self.pipe.set_progress_bar_config(disable=True)
        return list(self.pipe(texts, generator=sources, **settings).images)

    def alone(self, adapter: Adapter) -> Tensor:
        """One adapter at strength 1."""
        return self.draw([adapter])

    @contextmanager
    def _attached(self, adapters: Sequence[Adapter], method: Any, weights: Any) -> Iterator[None]:
        if not adapters:
            yield
            return
        attach(self.pipe, adapters, method, weights)
        try:
            yield
        finally:
            detach(self.pipe)

    def settings(self) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        row = row_of(self.pipe)
        own = defaults(row.name if row.name in BASES else "", row)
        side = self.side or row.resolution
        return {
            "num_inference_steps": self.steps or own["steps"],
            "guidance_scale": own["guidance"] if self.guidance is None else self.guidance,
            "guidance_rescale": own["guidance_rescale"],
            "height": side,
            "width": side,
        }

    @torch.no_grad()
    def reencoded(self, pictures: Tensor, times: int = 1) -> Tensor:
        """Through the base's own autoencoder, ``times`` times."""
        latents = Latents(self.pipe.vae)
        for _ in range(times):
            parts = [latents.decode(latents.encode(p.to(self.pipe.device))).cpu() for p in pictures.split(16)]
            pictures = (torch.cat(parts).clamp(0, 1) * 255).round() / 255
        return pictures

    @torch.no_grad()
    def regenerated(self, pictures: Tensor, share: float, times: int = 1) -> Tensor:
        """Noised to ``share`` of the schedule and denoised without a prompt (arXiv:2306.01953; SDEdit)."""
        for number in range(times):
            parts = [self._regenerated(p, share, number) for p in pictures.split(16)]
            pictures = (torch.cat(parts).clamp(0, 1) * 255).round() / 255
        return pictures

    def _regenerated(self, pictures: Tensor, share: float, number: int, steps: int = 6) -> Tensor:
        from loracomp.training.wiring import encode_captions, wiring_of

        pipe, latents = self.pipe, Latents(self.pipe.vae)
        device, kind = pipe.device, prediction_of(pipe)
        model: Any = denoiser_of(pipe)[1]
        z = latents.encode(pictures.to(device))
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(self.seed + number)).to(z)
        states = encode_captions(pipe, [""] * len(z), torch.device(device))
        states["side"] = torch.full((len(z),), float(pictures.shape[-1]), device=device)
        levels = pipe.scheduler.config.num_train_timesteps
        path = _path(pipe, kind, levels)
        places = torch.linspace(share, 0, steps + 1, device=device)
        x = path.noised(z, noise, places[:1].expand(len(z)))
        for now, then in pairwise(places):
            here, there = now.expand(len(z)), then.expand(len(z))
            made = wiring_of(pipe).predict(model, x.to(model.dtype), path.timesteps(here), states).float()
            x = path.step(x, path.velocity(made, x, here), here, there)
        return latents.decode(x).clamp(0, 1).cpu()


def _path(pipe: Any, kind: str, levels: int) -> Any:
    from loracomp.training.paths import Arc, Line

    if kind == "flow":
        return Line(levels, float(pipe.scheduler.config.get("shift", 1.0)))
    final = float(getattr(pipe.scheduler, "final_alpha_cumprod", 1.0))
    alphas = pipe.scheduler.alphas_cumprod.to(pipe.device, torch.float32)
    return Arc.of(alphas, final, kind)  # type: ignore[arg-type]
