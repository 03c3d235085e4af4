"""Which spatial frequencies an adapter adds, as numbers: radial spectra and the profile made of them.

CMLoRA (arXiv:2502.04923, §3.2) sorts adapters by the high-frequency amplitude that they add while an image
forms. Here this is computed, from predicted clean latents with and without the adapter, for any size: the
cut is relative to the largest radius, and rings without a single frequency are left out, so that no score
is ever undefined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from loracomp.errors import FormatError

CUT = 0.2
"""Radius between low and high frequencies as a share of the largest one, the paper's h."""
Band = Literal["high", "low", "unknown"]
_RINGS = 2
_SURE = 2.0
_NUMBERS = ("score", "error", "gain", "picture", "picture_error", "cut")


def radial_spectrum(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean amplitude of the 2-D Fourier transform on rings around frequency zero.

    Channels are transformed one by one and their amplitudes averaged: averaging channels first would cancel
    structure that has opposite signs in them. Rings are half a pixel wide and reach to the inscribed circle.

    Args:
        pictures: Shape (…, channels, height, width).

    Returns:
        Radii relative to the largest one, shape (rings,), ascending in [0, 1]; amplitudes as shares of
        their sum, shape (…, rings), all 0 for a picture of zeros.
    """
    height, width = pictures.shape[-2:]
    side = min(height, width)
    rows = torch.fft.fftfreq(height, dtype=torch.float64) * side
    columns = torch.fft.fftfreq(width, dtype=torch.float64) * side
    radius = (rows[:, None].square() + columns.square()).sqrt().flatten()
    inside = (radius <= side / 2).nonzero().flatten()
    ring = (radius[inside] * _RINGS).floor().long()
    present, index = ring.unique(return_inverse=True)
    spectrum = torch.fft.fft2(pictures.float()).abs().mean(-3).flatten(-2)
    place = index.to(spectrum.device)
    sums = torch.zeros(*spectrum.shape[:-1], len(present), device=spectrum.device)
    sums.index_add_(-1, place, spectrum[..., inside.to(spectrum.device)])
    means = sums / index.bincount().to(sums)
    total = means.sum(-1, keepdim=True)
    shares = torch.where(total > 0, means / total.clamp_min(1e-30), 0.0)
    return (present.double() / _RINGS / (side / 2)).float(), shares


def high_share(pictures: Tensor, cut: float = CUT) -> Tensor:
    """Share of the amplitude beyond ``cut`` of the largest radius, in [0, 1], shape (…)."""
    radii, shares = radial_spectrum(pictures)
    return shares[..., (radii > cut).to(shares.device)].sum(-1)


def gained(high: Tensor) -> Tensor:
    """High-frequency share that comes in while the first half of a run goes on, the paper's Δ H summed.

    Σ over steps k < S/2 of H(k) - H(k - d) with d = S/20, at least one step.

    Args:
        high: :func:`high_share` of the clean image predicted in each step, shape (steps, …).

    Returns:
        Shape (…).
    """
    steps = len(high)
    distance = max(1, round(steps / 20))
    end = min(max(distance + 1, (steps + 1) // 2), steps)
    return (high[distance:end] - high[: max(end - distance, 0)]).sum(0)


def early(high: Tensor) -> Tensor:
    """Mean high-frequency share over the first half of a run; shapes as in :func:`gained`."""
    return high[: (len(high) + 1) // 2].mean(0)


@dataclass(frozen=True)
class FrequencyProfile:
    """What an adapter does to the spectrum while an image forms.

    Attributes:
        score: High-frequency share of the predicted clean latent over the first half of a run, with the
            adapter less without it; mean over prompts and seeds.
        error: Standard error of the mean.
        gain: The same of what comes in after the first step (:func:`gained`). It does not decide the class:
            an adapter that knows what it draws adds its detail at once, and gains less from then on.
        picture: Change of the high-frequency share of the finished, decoded pictures.
        picture_error: Its standard error.
        high: High-frequency share of the predicted clean latent in each step, with the adapter.
        plain: The same without it.
        cut: Where high frequencies begin, as a share of the largest radius.
    """

    score: float
    error: float
    gain: float = 0.0
    picture: float = 0.0
    picture_error: float = 0.0
    high: tuple[float, ...] = ()
    plain: tuple[float, ...] = ()
    cut: float = CUT

    @property
    def band(self) -> Band:
        """``high`` or ``low``; ``unknown`` where the score is within two standard errors of zero."""
        if not abs(self.score) >= _SURE * self.error or self.score == 0:
            return "unknown"
        return "high" if self.score > 0 else "low"

    def to_parts(self) -> dict[str, Any]:
        """Plain data for JSON, the class included for those who read it."""
        return asdict(self) | {"band": self.band}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> FrequencyProfile:
        """What :meth:`to_parts` gave; raises :class:`FormatError` for anything else."""
        try:
            numbers = {n: float(parts[n]) for n in _NUMBERS}
            series = {name: tuple(map(float, parts[name])) for name in ("high", "plain")}
            return cls(**numbers, **series)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"not a frequency profile ({error})") from error


def frequency_profile(
    changed: Tensor, plain: Tensor, pictures: Tensor, plain_pictures: Tensor, cut: float = CUT
) -> FrequencyProfile:
    """The profile from runs with and without an adapter, same prompts and noise.

    Args:
        changed: Clean latents predicted with the adapter, shape (steps, runs, channels, height, width).
        plain: Those without it.
        pictures: Finished pictures with the adapter, shape (runs, 3, height, width).
        plain_pictures: Those without it.
        cut: Where high frequencies begin, as a share of the largest radius, in (0, 1).
    """
    high, base = high_share(changed, cut).double().cpu(), high_share(plain, cut).double().cpu()
    score, error = _mean(early(high) - early(base))
    gain, _ = _mean(gained(high) - gained(base))
    images, images_error = _mean((high_share(pictures, cut) - high_share(plain_pictures, cut)).double().cpu())
    series = [tuple(round(value, 6) for value in part.mean(1).tolist()) for part in (high, base)]
    return FrequencyProfile(score, error, gain, images, images_error, series[0], series[1], cut)


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error, which is infinite for a single value."""
    count = len(values)
    error = float(values.std() / count**0.5) if count > 1 else float("inf")
    return float(values.mean()), error
