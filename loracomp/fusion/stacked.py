"""The runtime layer: all adapters of one module stacked along the rank axis, scaled by a gate.

    h = x A_sᵀ,   h ← h ⊙ γ,   y = x Wᵀ + h B_sᵀ

with A_s (C, d_in), B_s (d_out, C) and C the sum of all ranks, rounded up to a capacity class: two matrix
products however many adapters there are. For a convolution A_s is a k × k convolution to C channels and B_s
a 1 × 1 one. Ranks that nobody owns have zero factors and a zero gate, so that other adapters can be written
into the same tensors later; compiled code that reads them stays valid.

The layer is a child of the module it serves and runs as its forward hook, so module paths, weights and
state dicts stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from loracomp.fusion.folded import foldable, folded
from loracomp.lowrank import LowRank

if TYPE_CHECKING:
    from loracomp.fusion.gated.live import LayerGating

CHILD = "loracomp"
Layers = Sequence[tuple[int, LowRank]]
"""(index of the adapter, its update) pairs of one module."""

_ARITHMETIC = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WIDTHS = ((64, 16), (256, 32), (1 << 30, 64))


def capacity_class(rank: int) -> int:
    """The number of ranks that is reserved for ``rank``: 8, then steps of 16, 32 above 64, 64 above 256.

    Few classes keep compiled graphs few; fine steps keep the padding below a quarter from rank 33 on.
    """
    if rank <= 8:
        return 8
    step = next(step for limit, step in _WIDTHS if rank <= limit)
    return -(-rank // step) * step


class StackedUpdate(nn.Module):
    """The updates of one module by several adapters.

    Args:
        layers: The updates, in the shape of the module's weight.
        module: The linear or convolution layer.
        capacity: Ranks to reserve at least; rounded up to a class together with what is needed.
        device: Where the factors go where the module's weight is on no real device.
        dtype: Arithmetic where the module's weight is stored in one that does not calculate (int8, fp8).

    Attributes:
        down: A_s, shape (C, d_in) or (C, c_in, k_h, k_w).
        up: B_s, shape (d_out, C) or (c_out, C, 1, 1).
        owner: Index of the adapter that each rank belongs to, shape (C,), on the CPU.
        place: Position of each rank among its adapter's ranks here, shape (C,), on the CPU.
        scale: alpha / r of that adapter's layer, 0 for a rank that nobody owns, shape (C,), on the CPU.
        gate: γ, shape (rows, C), where rows is 1 or the batch size; set from outside.
        regions: Gates per token, shape (1 or rows, tokens, C), by number of tokens; None for none.
        gating: A learned gate on the outputs (:mod:`loracomp.fusion.gated`), or None.
    """

    down: Tensor
    up: Tensor
    owner: Tensor
    place: Tensor
    scale: Tensor
    gate: Tensor
    regions: Mapping[int, Tensor] | None
    gating: LayerGating | None

    def __init__(
        self,
        layers: Layers,
        module: nn.Module,
        capacity: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        shape, weight = weight_shape(module), _weight(module)
        kind: dict[str, Any] = {
            "device": device if weight.device.type == "meta" else weight.device,
            "dtype": weight.dtype if weight.dtype in _ARITHMETIC else dtype,
        }
        size = capacity_class(max(capacity, sum(layer.rank for _, layer in layers)))
        tail = (1,) * (len(shape) - 2)
        self.register_buffer("down", torch.zeros(size, *shape[1:], **kind), persistent=False)
        self.register_buffer("up", torch.zeros(shape[0], size, *tail, **kind), persistent=False)
        self.gate = torch.zeros(1, size, **kind)
        self.regions = None
        self.gating = None
        self.convolution = _convolution_arguments(module) if tail else None
        self.write(layers)
        self.handle = self._serve(module)

    @property
    def capacity(self) -> int:
        """C, the ranks that fit."""
        return self.down.shape[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def write(self, layers: Layers) -> None:
        """Replaces all updates in place: same tensors, other adapters.

        Raises:
            ValueError: More ranks than :attr:`capacity`, or an update of another shape.
        """
        if sum(layer.rank for _, layer in layers) > self.capacity:
            raise ValueError(f"rank {sum(layer.rank for _, layer in layers)} in a layer for {self.capacity}")
        shape = (self.up.shape[0], *self.down.shape[1:])
        self.owner = torch.zeros(self.capacity, dtype=torch.long)
        self.place = torch.zeros(self.capacity, dtype=torch.long)
        self.scale = torch.zeros(self.capacity)
        start = 0
        for index, layer in layers:
            part, fitted = slice(start, start + layer.rank), reshape(layer, shape)
            self.down[part].copy_(fitted.down)
            self.up[:, part].copy_(fitted.up)
            self.owner[part], self.scale[part] = index, fitted.scale
            self.place[part] = torch.arange(layer.rank)
            start += layer.rank
        self.down[start:].zero_()
        self.up[:, start:].zero_()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds the gated updates of ``x`` to the module's own output ``y`` and returns it."""
        x = x.to(self.down.dtype)
        return self._linear(x, y) if self.convolution is None else self._convolve(x, y)

    def _linear(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.hidden(x)
        if self.gating is not None:
            tokens = (hidden, y) if x.ndim == 3 else (hidden.unsqueeze(-2), y.unsqueeze(-2))
            return y + self.gating.add(x, *tokens).reshape(y.shape).to(y.dtype)
        if hidden.dtype != y.dtype:
            return y + F.linear(hidden.to(self.up.dtype), self.up).to(y.dtype)
        return torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), self.up.T).view(y.shape)

    def hidden(self, x: Tensor) -> Tensor:
        """Gated hidden values of a linear layer, shape (…, C), for an input in the factors' dtype."""
        gate = self.gate if x.ndim == 2 else self.gate[:, None]
        hidden = F.linear(x, self.down) * gate
        if self.regions is not None and x.ndim == 3:
            region = self.regions.get(x.shape[1])
            hidden = hidden if region is None else hidden * region
        return hidden

    def _convolve(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.convolution is not None
        hidden = F.conv2d(x, self.down, **self.convolution) * self.gate[:, :, None, None]
        if self.regions is not None:
            region = self.regions.get(hidden.shape[2] * hidden.shape[3])
            hidden = hidden if region is None else hidden * region.mT.unflatten(2, hidden.shape[2:])
        if self.gating is not None:
            added = self.gating.add(x, hidden.flatten(2).mT, y.flatten(2).mT)
            return y + added.mT.reshape(y.shape).to(y.dtype)
        return y + F.conv2d(hidden, self.up).to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StackedUpdate:
        """Moves with the module, but never into a dtype that is only for storage (layerwise casting)."""

        def moved(values: Tensor) -> Tensor:
            result = fn(values)
            return result if result.dtype in _ARITHMETIC else values.to(result.device)

        super()._apply(moved, recurse)
        return self

    def _serve(self, module: nn.Module) -> RemovableHandle:
        module.add_module(CHILD, self)
        return module.register_forward_hook(_add_updates)

    def leave(self, module: nn.Module) -> None:
        """Takes the layer off its module, which is then as it was before."""
        self.handle.remove()
        del module._modules[CHILD]


def _add_updates(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    update: StackedUpdate = module.loracomp  # type: ignore[assignment]
    if foldable(module, update, inputs[0], output):
        return folded(cast("nn.Linear", module), update, inputs[0])
    return update(inputs[0], output)


def _weight(module: nn.Module) -> Tensor:
    return module.weight  # type: ignore[return-value]


def _convolution_arguments(module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name) for name in ("stride", "padding", "dilation")}


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of the weight that a linear or convolution layer stands for, however it is packed."""
    shape, packed = tuple(_weight(module).shape), vars(module)
    if len(shape) == 2 and {"in_features", "out_features"} <= packed.keys():
        return (packed["out_features"], packed["in_features"])
    return shape


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
