"""The verdict on images and a key: verified, no evidence, or inconclusive, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from loracomp.errors import FormatError
from loracomp.watermark.calibration import Calibration, Empirical
from loracomp.watermark.evidence import Score, readers, score
from loracomp.watermark.keys import Key

ALPHA = 1e-3
GRAY = 30.0
"""A p-value below this many times α is called undecided, not absent: more images would tell."""
FEWEST_IMAGES = 3
Decision = Literal["verified", "no evidence", "inconclusive"]
EXIT_CODES: dict[Decision, int] = {"verified": 0, "no evidence": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Verdict:
    """What images say about a key.

    Attributes:
        decision: One of three.
        reasons: Why, in words.
        images: Images that counted.
        score: The score.
        p_random_key: p-value over random keys, screened ones where calibration screens.
        empirical: The registered key's own null; None where calibration holds too few images.
        p: The larger of the two; the decision's.
        alpha: Level of the decision.
    """

    decision: Decision
    reasons: tuple[str, ...]
    images: int
    score: Score
    p_random_key: float
    empirical: Empirical | None
    p: float | None
    alpha: float

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object, without anything secret."""
        return asdict(self)


def verify(
    coordinates: Tensor,
    key: Key,
    calibration: Calibration,
    *,
    alpha: float = ALPHA,
    gain: float = 1.0,
    keyed: bool = True,
    weights_proven: bool = False,
    small: int = 0,
) -> Verdict:
    """The verdict on distinct images.

    Args:
        coordinates: What the extractor gave, (images, dimensions), duplicates left out.
        key: The key.
        calibration: Of the same extractor.
        alpha: Level in (0, 0.5).
        gain: See :func:`loracomp.watermark.evidence.score`.
        keyed: See there.
        weights_proven: Whether the LoRA's own manifest is at hand and holds; then one image will do.
        small: How many of the images are too small to read well.

    Raises:
        FormatError: The calibration is of another extractor's size.
    """
    if coordinates.shape[1] != calibration.coordinates.shape[1]:
        raise FormatError(
            f"calibration of {calibration.coordinates.shape[1]} coordinates, extractor of "
            f"{coordinates.shape[1]}; calibrate with the codec that verifies"
        )
    found = score(coordinates, key, calibration.scale, gain, keyed)
    p_key = min(1.0, found.p_key / calibration.acceptance)
    direction = readers(key, coordinates.shape[1], keyed)[1]
    empirical = calibration.empirical(direction, found.cosine, len(coordinates))
    p = None if empirical is None else max(p_key, empirical.p)
    strange = int(calibration.outside(coordinates, direction).sum())
    decision, reasons = _decide(p, p_key, alpha, len(coordinates), strange, small, weights_proven)
    return Verdict(decision, tuple(reasons), len(coordinates), found, p_key, empirical, p, alpha)


def _decide(
    p: float | None, p_key: float, alpha: float, images: int, strange: int, small: int, weights_proven: bool
) -> tuple[Decision, list[str]]:
    reasons = []
    if p is None:
        reasons.append(f"calibration holds too few unmarked images for sets of {images}")
    if 2 * strange > images:
        reasons.append(f"{strange} of {images} images are unlike everything that was calibrated")
    if 2 * small > images:
        reasons.append(f"{small} of {images} images are too small to read")
    if p is None or reasons:
        return "inconclusive", reasons
    if p > alpha:
        if p_key <= alpha:
            reasons.append("unmarked images score as high with this key")
        if p <= GRAY * alpha:
            return "inconclusive", [
                *reasons,
                f"p = {p:.2g} is neither below {alpha:g} nor unremarkable; add images",
            ]
        return "no evidence", [*reasons, f"p = {p:.2g}: as expected of images without this mark"]
    if images < FEWEST_IMAGES and not weights_proven:
        few = f"{images} distinct image{'s' if images > 1 else ''}"
        return "inconclusive", [
            f"p = {p:.2g}, but {few} can be forged; give {FEWEST_IMAGES}, or the LoRA with --adapter"
        ]
    return "verified", [f"p = {p:.2g} is at most {alpha:g}"]
