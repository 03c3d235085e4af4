"""The layers that adapters change: where they are, and how their factors lie in a row of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.bases import Base, classic_path
from loracomp.errors import UsageError
from loracomp.pipeline import denoiser_of
from loracomp.training.config import TrainConfig
from loracomp.training.inject import TEXT_TARGETS, fresh_down, no_such_layers
from loracomp.training.many.products import Kernel


@dataclass(frozen=True, eq=False)
class Place:
    """One layer.

    Attributes:
        path: Classic module path.
        module: The layer.
        shape: Its weight's shape, (d_out, d_in) or (c_out, c_in, k_h, k_w).
        kernel: Geometry of a convolution; None for a linear layer.
    """

    path: str
    module: nn.Module
    shape: tuple[int, ...]
    kernel: Kernel | None

    def factor_shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of the stacked factors of one adapter: (taps · rank, d_in) and (d_out, rank)."""
        taps = self.kernel.size[0] * self.kernel.size[1] if self.kernel else 1
        return (taps * rank, self.shape[1]), (self.shape[0], rank)

    def fresh(self, config: TrainConfig, rank: int) -> Tensor:
        """The factors (numbers,) that a run begins with, padded with zeros to ``rank``."""
        down = fresh_down(config.seed, f"{self.path}.down", (config.rank, *self.shape[1:]))
        padded = F.pad(down, (0, 0) * (down.ndim - 1) + (0, rank - config.rank))
        if self.kernel:
            padded = padded.permute(2, 3, 0, 1)
        return torch.cat([padded.reshape(-1), torch.zeros(self.shape[0] * rank)])

    def factors(self, numbers: Tensor, own: int, rank: int) -> tuple[Tensor, Tensor]:
        """Down and up as :class:`LowRank` has them, cut to the adapter's ``own`` rank."""
        (rows, columns), (out, _) = self.factor_shapes(rank)
        down, up = numbers.split([rows * columns, out * rank])
        up = up.reshape(out, rank)[:, :own]
        if self.kernel is None:
            return down.reshape(rows, columns)[:own].clone(), up.clone()
        taps = down.reshape(*self.kernel.size, rank, columns).permute(2, 3, 0, 1)
        return taps[:own].clone(memory_format=torch.contiguous_format), up[:, :, None, None].clone()


def places_of(pipe: Any, config: TrainConfig, row: Base) -> tuple[Place, ...]:
    """The layers that a complete config adapts, sorted by path: those that a single run would.

    Raises:
        UsageError: No layer of the denoiser has one of the targets' names, or one is of a kind that
            cannot be stacked.
    """
    name, denoiser = denoiser_of(pipe)
    found = list(_matching(name, denoiser, config.targets))
    if not found:
        raise no_such_layers(denoiser, config.targets)
    for encoder in row.text_encoders if config.train_text_encoder else ():
        model = getattr(pipe, encoder)
        if any(path.endswith("q_proj") for path, _ in model.named_modules()):
            found += _matching(encoder, model, TEXT_TARGETS)
    return tuple(sorted(found, key=lambda place: place.path))


def _matching(component: str, model: nn.Module, targets: Sequence[str]) -> Iterator[Place]:
    ends = tuple(f".{target}" for target in targets)
    for path, module in model.named_modules():
        if not f".{path}".endswith(ends):
            continue
        full = classic_path(f"{component}.{path}")
        if isinstance(module, nn.Linear):
            yield Place(full, module, tuple(module.weight.shape), None)
        elif isinstance(module, nn.Conv2d):
            yield Place(full, module, tuple(module.weight.shape), _kernel(full, module))


def _kernel(path: str, layer: nn.Conv2d) -> Kernel:
    if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise UsageError(f"targets: {path} is a convolution in groups or with borders that cannot be stacked")
    vertical, horizontal = layer.padding
    (height, width), (down, right), (tall, wide) = layer.kernel_size, layer.stride, layer.dilation
    return Kernel((height, width), (down, right), (vertical, horizontal), (tall, wide))
