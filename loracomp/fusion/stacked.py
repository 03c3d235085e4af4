"""The runtime layer: all adapters of one module stacked along the rank axis, scaled by a gate.

    h = x A_sᵀ,   h ← h ⊙ γ,   y = x Wᵀ + h B_sᵀ

with A_s (R, d_in), B_s (d_out, R) and R the sum of all ranks: two matrix products however many
adapters there are. For a convolution A_s is a k × k convolution to R channels and B_s a 1 × 1 one.
The layer is a child of the module it serves and runs as its forward hook, so module paths, weights
and state dicts stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from loracomp.lowrank import LowRank

CHILD = "loracomp"


class StackedUpdate(nn.Module):
    """The updates of one module by several adapters.

    Attributes:
        down: A_s, shape (R, d_in) or (R, c_in, k_h, k_w).
        up: B_s, shape (d_out, R) or (c_out, R, 1, 1).
        owner: Index of the adapter that each rank belongs to, shape (R,).
        scale: alpha / r of that adapter's layer, shape (R,).
        gate: γ, shape (rows, R), where rows is 1 or the batch size; set from outside.
    """

    down: Tensor
    up: Tensor
    owner: Tensor
    scale: Tensor
    gate: Tensor

    def __init__(self, layers: Sequence[tuple[int, LowRank]], module: nn.Module) -> None:
        super().__init__()
        weight: Tensor = module.weight  # type: ignore[assignment]
        shape, device, dtype = tuple(weight.shape), weight.device, _compute_dtype(weight)
        updates = [(index, reshape(layer, shape).to(device, dtype)) for index, layer in layers]
        self.register_buffer("down", torch.cat([u.down for _, u in updates]), persistent=False)
        self.register_buffer("up", torch.cat([u.up for _, u in updates], dim=1), persistent=False)
        self.owner = torch.cat([torch.full((u.rank,), index) for index, u in updates])
        self.scale = torch.cat([torch.full((u.rank,), u.scale) for _, u in updates])
        self.gate = torch.zeros(1, self.rank, device=device, dtype=dtype)
        self.convolution = _convolution_arguments(module) if self.down.ndim == 4 else None
        self.handle = self._serve(module)

    @property
    def rank(self) -> int:
        """R, the sum of all adapters' ranks."""
        return self.down.shape[0]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds the gated updates of ``x`` to the module's own output ``y`` and returns it."""
        return self._linear(x, y) if self.convolution is None else self._convolve(x, y)

    def _linear(self, x: Tensor, y: Tensor) -> Tensor:
        gate = self.gate if x.ndim == 2 else self.gate[:, None]
        hidden = F.linear(x, self.down) * gate
        flat = torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), self.up.T)
        return flat.view(y.shape)

    def _convolve(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.convolution is not None
        hidden = F.conv2d(x, self.down, **self.convolution) * self.gate[:, :, None, None]
        return y + F.conv2d(hidden, self.up)

    def _serve(self, module: nn.Module) -> RemovableHandle:
        module.add_module(CHILD, self)
        return module.register_forward_hook(_add_updates)

    def leave(self, module: nn.Module) -> None:
        """Takes the layer off its module, which is then as it was before."""
        self.handle.remove()
        del module._modules[CHILD]


def _add_updates(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    update: StackedUpdate = module.get_submodule(CHILD)  # type: ignore[assignment]
    return update(inputs[0], output)


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """The weight's dtype, or bfloat16 where the weight is stored in integers (quantised)."""
    return weight.dtype if weight.is_floating_point() else torch.bfloat16


def _convolution_arguments(module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name) for name in ("stride", "padding", "dilation")}


def reshape(layer: LowRank, weight_shape: tuple[int, ...]) -> LowRank:
    """The layer with factors in the form of a weight of the given shape.

    Files store a 1 × 1 convolution as a matrix or the other way round; the update is the same.

    Raises:
        ValueError: The update is of another shape, beyond that difference.
    """
    if layer.weight_shape == weight_shape:
        return layer
    tail = (1,) * (len(weight_shape) - 2)
    if layer.weight_shape[:2] != weight_shape[:2] or set(layer.weight_shape[2:] + weight_shape[2:]) - {1}:
        raise ValueError(f"update of shape {layer.weight_shape} on a weight of shape {weight_shape}")
    down = layer.down.reshape(layer.rank, weight_shape[1], *tail)
    return LowRank(down, layer.up.reshape(weight_shape[0], layer.rank, *tail), layer.alpha)
