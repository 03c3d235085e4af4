"""How captions and noisy latents enter each kind of denoiser, told from its configuration.

There are three: U-Nets (cross-attention, perhaps with SDXL's pooled text and sizes), joint
transformers (SD3) and packed transformers (FLUX: latents as 2×2 patches with position ids).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from loracomp.bases import BASES, Base, Prediction, fit
from loracomp.pipeline import denoiser_of, layers_of, weight_shape

States = Mapping[str, Tensor]


class Wiring(Protocol):
    """One way of wiring a denoiser."""

    def text(self, encoded: Sequence[Any]) -> dict[str, Tensor]:
        """The tensors with a leading caption axis among what ``encode_prompt`` returned."""

    def predict(self, model: Any, noisy: Tensor, timesteps: Tensor, states: States) -> Tensor:
        """The denoiser's output in the shape of ``noisy``; timesteps (batch,) in [0, N)."""


class UNetWiring:
    """U-Nets of the Stable Diffusion family."""

    def text(self, encoded: Sequence[Any]) -> dict[str, Tensor]:
        """Hidden states, and the pooled state where there is one (SDXL)."""
        states = {"hidden": encoded[0]}
        return {**states, "pooled": encoded[2]} if len(encoded) > 2 else states

    def predict(self, model: Any, noisy: Tensor, timesteps: Tensor, states: States) -> Tensor:
        """See :class:`Wiring`; sizes are those of an uncropped picture at the latent's resolution."""
        extra: dict[str, Any] = {}
        if model.config.addition_embed_type == "text_time":
            side = states["side"]
            zero = torch.zeros_like(side)
            ids = torch.stack([side, side, zero, zero, side, side], dim=1)
            extra["added_cond_kwargs"] = {"text_embeds": states["pooled"], "time_ids": ids.to(noisy)}
        return model(noisy, timesteps, encoder_hidden_states=states["hidden"], return_dict=False, **extra)[0]


class JointWiring:
    """Transformers that take latents as pictures, beside hidden and pooled text (SD3)."""

    def text(self, encoded: Sequence[Any]) -> dict[str, Tensor]:
        """Hidden and pooled states."""
        return {"hidden": encoded[0], "pooled": encoded[2]}

    def predict(self, model: Any, noisy: Tensor, timesteps: Tensor, states: States) -> Tensor:
        """See :class:`Wiring`."""
        return model(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=states["hidden"],
            pooled_projections=states["pooled"],
            return_dict=False,
        )[0]


class PackedWiring:
    """Transformers that take 2×2 patches in a row, with position ids and σ as timestep (FLUX)."""

    guidance = 1.0
    """Guidance-distilled models are trained at guidance 1, as diffusers' FLUX trainer does."""

    def text(self, encoded: Sequence[Any]) -> dict[str, Tensor]:
        """Hidden and pooled states; the text's position ids are zero."""
        return {"hidden": encoded[0], "pooled": encoded[1]}

    def predict(self, model: Any, noisy: Tensor, timesteps: Tensor, states: States) -> Tensor:
        """See :class:`Wiring`."""
        batch, _, height, width = noisy.shape
        steps = torch.full((batch,), self.guidance, device=noisy.device)
        out = model(
            hidden_states=pack(noisy),
            timestep=timesteps / 1000,
            guidance=steps if model.config.guidance_embeds else None,
            encoder_hidden_states=states["hidden"],
            pooled_projections=states["pooled"],
            txt_ids=noisy.new_zeros(states["hidden"].shape[1], 3),
            img_ids=patch_positions(height // 2, width // 2, noisy.device).to(noisy),
            return_dict=False,
        )[0]
        return unpack(out, height, width)


def pack(latents: Tensor) -> Tensor:
    """(b, c, h, w) as (b, h/2 · w/2, 4c): each token a 2×2 patch, channels outermost."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`pack` for latents of the given height and width."""
    batch, _, size = tokens.shape
    patches = tokens.reshape(batch, height // 2, width // 2, size // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, size // 4, height, width)


def patch_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """(rows · columns, 3) position ids (0, row, column)."""
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids.reshape(-1, 3)


def wiring_of(pipe: Any) -> Wiring:
    """How the pipeline's denoiser is wired."""
    if denoiser_of(pipe)[0] == "unet":
        return UNetWiring()
    return PackedWiring() if hasattr(pipe, "_pack_latents") else JointWiring()


def prediction_of(pipe: Any) -> Prediction:
    """What the pipeline's denoiser predicts, from its scheduler."""
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        return "flow"
    return "v_prediction" if pipe.scheduler.config.prediction_type == "v_prediction" else "epsilon"


def layer_shapes(pipe: Any) -> dict[str, tuple[int, ...]]:
    """Weight shapes of the layers that an adapter of this pipeline may change, by classic path."""
    return {path: weight_shape(layer) for path, layer in layers_of(pipe).items()}


def row_of(pipe: Any) -> Base:
    """The base's row: of those with this pipeline class, the one whose layers fit best."""
    shapes = layer_shapes(pipe)
    rows = [row for row in BASES.values() if row.pipeline == type(pipe).__name__]
    return max(rows or BASES.values(), key=lambda row: fit(shapes, row.name))


def encode_captions(pipe: Any, captions: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Text states of captions through the pipeline's own ``encode_prompt``, leading axis the captions."""
    wanted = {
        "prompt": list(captions),
        "prompt_2": None,
        "prompt_3": None,
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    known = inspect.signature(pipe.encode_prompt).parameters
    encoded = pipe.encode_prompt(**{key: value for key, value in wanted.items() if key in known})
    return wiring_of(pipe).text(encoded)
