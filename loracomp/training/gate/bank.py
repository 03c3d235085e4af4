"""All adapters of a run as padded tensors on the device, and the layers that use a few of them per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.fusion.gated import outputs, rule
from loracomp.fusion.gated.form import Form
from loracomp.fusion.stacked import reshape, weight_shape
from loracomp.training.many.products import Kernel, ShiftedSum


@dataclass(frozen=True)
class Turn:
    """What the layers do in a forward pass of S samples with N adapters each.

    Attributes:
        chosen: Positions of the adapters in the bank, shape (S, N).
        gates: The gate of each layer by path; None adds plain sums.
    """

    chosen: Tensor
    gates: Mapping[str, rule.Vectors] | None


class Site:
    """One layer of the denoiser with the updates of all adapters.

    Args:
        path: Module path.
        module: The linear or convolution layer.
        adapters: All adapters.
        rank: Ranks that each takes.
        bench: Tells whose turn it is.
    """

    def __init__(
        self, path: str, module: nn.Module, adapters: Sequence[Adapter], rank: int, bench: Bench
    ) -> None:
        shape = weight_shape(module)
        weight: Tensor = module.weight  # type: ignore[assignment]
        self.path, self.bench, self.rank = path, bench, rank
        self.kernel = _kernel(module) if len(shape) == 4 else None
        taps = shape[2] * shape[3] if self.kernel else 1
        downs = torch.zeros(len(adapters), taps, rank, shape[1])
        ups = torch.zeros(len(adapters), rank, shape[0])
        for number, adapter in enumerate(adapters):
            if path in adapter.layers:
                layer = reshape(adapter.layers[path], shape)
                down = layer.down.float().reshape(layer.rank, shape[1], taps)
                downs[number, :, : layer.rank] = down.permute(2, 0, 1)
                ups[number, : layer.rank] = layer.up.float().flatten(1).T * layer.scale
        self.downs, self.ups = (part.to(weight.device, weight.dtype) for part in (downs, ups))
        self.handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor | None:
        """The module's output with the updates of the turn; None leaves it as it is."""
        turn = self.bench.turn
        if turn is None:
            return None
        x = inputs[0]
        tokens = y.flatten(2).mT if self.kernel else y
        hidden, up = self._hidden(x, turn.chosen), self.ups[turn.chosen].flatten(1, 2).mT
        if turn.gates is None:
            added = hidden @ up.mT
        else:
            added = self._gated(turn.gates[self.path], tokens, hidden, up, self.downs[turn.chosen])
        return y + (added.mT.reshape(y.shape) if self.kernel else added)

    def _gated(self, vectors: rule.Vectors, y: Tensor, hidden: Tensor, up: Tensor, downs: Tensor) -> Tensor:
        count = hidden.shape[-1] // self.rank
        spans = [(i * self.rank, (i + 1) * self.rank) for i in range(count)]
        owner = self.bench.owner(count, up.device)
        form, down = self.bench.form, downs.transpose(2, 3).flatten(3).flatten(1, 2)
        stack = outputs.Stack.of(form, up, down, spans, owner)
        return rule.update(form, vectors, y, stack.extended(form, hidden, None)[0], stack)

    def _hidden(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Hidden values of all ranks, shape (S, tokens, N · r)."""
        downs = self.downs[chosen].transpose(1, 2).flatten(1, 3)
        if self.kernel is None:
            return x @ downs.mT
        batch, _, height, width = x.shape
        maps = x.flatten(2).mT @ downs.mT
        if self.kernel.plain:
            return maps
        ranks = chosen.shape[1] * self.rank
        taps = maps.reshape(batch, height, width, *self.kernel.size, ranks)
        found: Tensor = ShiftedSum.apply(taps, self.kernel)
        return found.flatten(1, 2)


class Bench:
    """All sites of a denoiser; takes them off at the end of the context.

    Args:
        name: The denoiser's name, with which paths begin.
        adapters: All adapters.
        layers: The pipeline's layers by path.
        form: The gate's form.
    """

    def __init__(
        self, name: str, adapters: Sequence[Adapter], layers: Mapping[str, nn.Module], form: Form
    ) -> None:
        self.form = form
        self.turn: Turn | None = None
        self._owners: dict[int, Tensor] = {}
        paths = dict.fromkeys(path for adapter in adapters for path in adapter.layers)
        self.rank = max(layer.rank for adapter in adapters for layer in adapter.layers.values())
        self.sites = {
            path: Site(path, layers[path], adapters, self.rank, self)
            for path in sorted(paths)
            if path.startswith(f"{name}.")
        }

    def owner(self, count: int, device: torch.device) -> Tensor:
        """Owners of the ranks of ``count`` adapters, one-hot: the same in all layers."""
        if count not in self._owners:
            self._owners[count] = torch.eye(count, device=device).repeat_interleave(self.rank, dim=0)
        return self._owners[count]

    @property
    def widths(self) -> dict[str, int]:
        """Output channels of each site."""
        return {path: site.ups.shape[-1] for path, site in self.sites.items()}

    def leave(self) -> None:
        """Takes the sites off their modules."""
        for site in self.sites.values():
            site.handle.remove()


def _kernel(module: nn.Module) -> Kernel:
    values: Any = module
    return Kernel(values.kernel_size, values.stride, values.padding, values.dilation)
