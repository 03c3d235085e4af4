"""A mark in latents, at every noise level: pure functions of tensors, for every kind of prediction.

x_t = a z + b ε with a = √ᾱ, b = √(1 - ᾱ) (diffusion) or a = 1 - σ, b = σ (flow). The latents z + s δ of a
marked picture lie at x_t + a s δ at the same noise. A denoiser that takes this for marked latents predicts
the clean picture ẑ + s δ there: its score is moved, and nothing is learned anew (AquaLoRA, arXiv:2405.11135,
§3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from loracomp.bases import Prediction
from loracomp.training.losses import spread

LARGEST_SNR = 5.0


def clean_of(predicted: Tensor, noisy: Tensor, a: Tensor, b: Tensor, kind: Prediction) -> Tensor:
    """ẑ, the clean latents that a prediction means.

    Args:
        predicted: What the denoiser gave, (batch, channels, h, w).
        noisy: What it was given.
        a: (batch,) signal.
        b: (batch,) noise.
        kind: What the denoiser predicts.
    """
    signal, noise = spread(a, noisy), spread(b, noisy)
    if kind == "epsilon":
        return (noisy - noise * predicted) / signal.clamp_min(1e-3)
    if kind == "v_prediction":
        return signal * noisy - noise * predicted
    return noisy - noise * predicted


def native_target(clean: Tensor, noise: Tensor, a: Tensor, b: Tensor, kind: Prediction) -> Tensor:
    """What a denoiser of this kind is asked for."""
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return spread(a, clean) * noise - spread(b, clean) * clean
    return noise - clean


def late(times: Tensor, middle: float = 0.3, width: float = 0.1, floor: float = 0.0) -> Tensor:
    """Weights (batch,) that prefer low noise: sigmoid(-(t - middle) / width) for times in [0, 1].

    Texture is decided late; marks that are put in there leave the composition alone (SleeperMark,
    arXiv:2412.04852). ``floor`` keeps the denoiser where it was at high noise.
    """
    return floor + (1 - floor) * torch.sigmoid(-(times - middle) / width)


def snr_weights(a: Tensor, b: Tensor) -> Tensor:
    """min(SNR, 5): what turns errors of clean latents into those of noise, bounded (arXiv:2303.09556)."""
    return ((a / b.clamp_min(1e-4)) ** 2).clamp_max(LARGEST_SNR)


def balanced_messages(count: int, bits: int, source: torch.Generator) -> Tensor:
    """Random messages (count, bits) of 0 and 1 whose weight lies in [0.40 L, 0.60 L]."""
    from loracomp.watermark.tails import balanced_weights

    low, high = balanced_weights(bits)
    made = torch.randint(2, (count, bits), generator=source).float()
    while bool((bad := (made.sum(1) < low) | (made.sum(1) > high)).any()):
        made[bad] = torch.randint(2, (int(bad.sum()), bits), generator=source).float()
    return made


def mapper(bits: int, rank: int, source: torch.Generator) -> Tensor:
    """Embeddings eᵢ of the bits (bits, rank): orthogonal as far as they can be, unit deviation over ranks."""
    table = torch.randn(max(bits, rank), max(bits, rank), generator=source)
    rows = torch.linalg.qr(table).Q[:bits, :rank]
    return (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True).clamp_min(1e-6)


def modulation(messages: Tensor, embeddings: Tensor, size: float = 1.0, signed: bool = False) -> Tensor:
    """S(m) = 1 + size · L^-½ Σ mᵢ eᵢ, (batch, rank).

    With bits of 0 and 1 the message of zeros leaves the adapter as it is (AquaLoRA, AuthenLoRA); with signs
    and a size of 0.25 no entry turns negative in practice.
    """
    bits = 2 * messages - 1 if signed else messages
    return 1 + size * bits @ embeddings / messages.shape[1] ** 0.5
