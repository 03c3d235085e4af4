"""Vectors of gates for the tests of gated fusion."""

from __future__ import annotations

import torch
from torch import Tensor

from loracomp.fusion.gated import Form


def noisy(form: Form, width: int, seed: int = 0) -> Tensor:
    """Vectors of a gate that is far from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    return form.initial(width, generator) + 0.4 * torch.randn(len(form.rows), width, generator=generator)
