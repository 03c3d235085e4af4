"""From an extractor's coordinates to one score: centered, clipped, pooled before anything is tested.

Coordinates û are (images, dimensions), a mark's direction v is a unit vector (dimensions,). What a key is
tested with is the cosine ρ of v with the pooled coordinates. Centering, clipping and weighing depend on the
images and on calibration alone, never on the key, so the key's randomness alone decides ρ under the null.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loracomp.watermark.keys import Key
from loracomp.watermark.tails import balanced_share, sign_tail, sphere_tail

CLIP = 4.0
DRAWS = 2000
BET = 0.5


@dataclass(frozen=True, eq=False)
class Scale:
    """What unmarked images look like to the extractor, per coordinate.

    Attributes:
        mean: (dimensions,) float64.
        deviation: (dimensions,) float64, positive.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, negatives: Tensor) -> Scale:
        """From coordinates of unmarked images (images, dimensions), at least two."""
        values = negatives.double()
        deviation = values.std(0)
        floor = 0.1 * deviation.mean().clamp_min(1e-12)
        return cls(values.mean(0), deviation.clamp_min(floor))

    @classmethod
    def none(cls, dimensions: int) -> Scale:
        """Coordinates as they are."""
        return cls(torch.zeros(dimensions).double(), torch.ones(dimensions).double())

    def standard(self, coordinates: Tensor) -> Tensor:
        """Centered, divided by the deviation, clipped, and each image brought to length 1; float64.

        An image that has no coordinates at all, or some that are not finite, becomes zero.
        """
        values = (coordinates.double() - self.mean) / self.deviation
        values = values.clamp(-CLIP, CLIP)
        size = values.norm(dim=-1, keepdim=True)
        good = size.isfinite() & (size > 1e-9)
        return torch.where(good, values / size.clamp_min(1e-9), torch.zeros_like(values))


def pooled(standard: Tensor) -> Tensor:
    """The sum over images (…, images, dimensions) as a unit vector, zero where it vanishes."""
    total = standard.sum(-2)
    size = total.norm(dim=-1, keepdim=True)
    return torch.where(size > 1e-9, total / size.clamp_min(1e-9), torch.zeros_like(total))


@dataclass(frozen=True)
class Strength:
    """How much of a mark the images carry, 1 for what the LoRA puts in at strength 1.

    Attributes:
        value: The estimate; negative where the LoRA was subtracted.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """What images say about one key.

    Attributes:
        cosine: ρ of the pooled coordinates with the key's direction.
        p_key: Exact p-value over random keys.
        bits: Length of the message.
        matches: Decoded bits that match, of all images together.
        accuracy: Mean share of matching bits per image.
        accuracy_low: Lower end of its 95 % interval over images; NaN for one image.
        accuracy_high: Upper end.
        p_signs: p-value over random messages with these carriers (an upper bound beyond 40 bits).
        e_value: Evidence against a random message, for a bet that is fixed beforehand; reject at 1 / α.
        strength: How much of the mark is there.
    """

    cosine: float
    p_key: float
    bits: int
    matches: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    p_signs: float
    e_value: float
    strength: Strength


def score(coordinates: Tensor, key: Key, scale: Scale, gain: float = 1.0, keyed: bool = True) -> Score:
    """The score of images (n, dimensions) for a key.

    Args:
        coordinates: What the extractor gave.
        key: The key.
        scale: Calibration.
        gain: ⟨û - μ, v⟩ of an image made at strength 1, from the power curve.
        keyed: Whether carriers come from the key. Codecs with fixed carriers give a logit per bit; their
            p-value is that of a random balanced message.
    """
    dimensions = coordinates.shape[1]
    carriers, direction = readers(key, dimensions, keyed)
    standard = scale.standard(coordinates)
    whole = pooled(standard)
    cosine = float(whole @ direction)
    signs = 2 * key.message - 1
    logits = standard @ carriers.T
    right = ((logits * signs) > 0).double().mean(1)
    total = logits.sum(0)
    low, high = bootstrap(right)
    share = balanced_share(key.bits)
    p_signs = min(1.0, sign_tail(total, float((total * signs).sum())) / share)
    return Score(
        cosine=cosine,
        p_key=(sphere_tail(cosine, dimensions) if keyed else p_signs) if bool(whole.any()) else 1.0,
        bits=key.bits,
        matches=int(((total * signs) > 0).sum()),
        accuracy=float(right.mean()),
        accuracy_low=low,
        accuracy_high=high,
        p_signs=p_signs,
        e_value=_e_value(whole @ carriers.T * dimensions**0.5, signs) * share,
        strength=_strength(coordinates.double() - scale.mean, direction, gain),
    )


def readers(key: Key, dimensions: int, keyed: bool = True) -> tuple[Tensor, Tensor]:
    """Carriers (bits, dimensions) and direction (dimensions,) that a key is read with, float64."""
    if keyed:
        return key.carriers(dimensions), key.direction(dimensions)
    signs = 2.0 * key.message.double() - 1
    return torch.eye(dimensions).double(), signs / key.bits**0.5


def _e_value(logits: Tensor, signs: Tensor) -> float:
    """Π exp(λ sᵢ(2mᵢ - 1)) / cosh(λ sᵢ), of mean 1 for a random message; λ is :data:`BET`.

    Valid for one bet and one set of images, both fixed beforehand: every image is read with the same key, so
    looking again after each image is not allowed.
    """
    bets = BET * logits
    grown = (bets * signs - (bets.abs() + torch.log1p(torch.exp(-2 * bets.abs())) - math.log(2))).sum()
    return math.exp(min(700.0, float(grown)))


def _strength(centered: Tensor, direction: Tensor, gain: float) -> Strength:
    """Mean projection; its interval from images where there are three, else from the other coordinates."""
    values = centered @ direction / gain
    mean, count = float(values.mean()), len(values)
    if count >= 3:
        low, high = bootstrap(values)
        return Strength(mean, low, high)
    rest = centered.mean(0) - (centered.mean(0) @ direction) * direction
    error = 1.96 * float(rest.norm()) / (len(rest) - 1) ** 0.5 / abs(gain)
    return Strength(mean, mean - error, mean + error)


def bootstrap(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a mean over images (n,); NaN for fewer than two."""
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    chosen = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))
    means = values[chosen].mean(1)
    wide = values.mean() + (means - values.mean()) * (count / (count - 1)) ** 0.5
    tail = (1 - level) / 2
    ends = wide.quantile(torch.tensor([tail, 1 - tail], dtype=wide.dtype)).clamp(values.min(), values.max())
    return float(ends[0]), float(ends[1])
