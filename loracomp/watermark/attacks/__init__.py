"""Attacks on marks: on pictures, on LoRA files, and the harness that runs each on unmarked twins as well."""

from loracomp.watermark.attacks.images import IMAGE_ATTACKS
from loracomp.watermark.attacks.suite import Case, Row, Suite, function_cases, image_cases, weight_cases
from loracomp.watermark.attacks.weights import WEIGHT_ATTACKS

__all__ = [
    "IMAGE_ATTACKS",
    "WEIGHT_ATTACKS",
    "Case",
    "Row",
    "Suite",
    "function_cases",
    "image_cases",
    "weight_cases",
]
