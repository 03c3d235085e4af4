"""Turning the trained layers while they run: strength, message, rank, the unmarked twin, other adapters.

Everything is a forward hook on PEFT's layers, so the layers themselves stay what a plain run trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank
from loracomp.training.inject import ADAPTER, Injected


class Dial:
    """Hooks on injected layers; :meth:`remove` takes them off.

    Attributes:
        strength: (batch,) factor of each sample's update; None for 1.
        scale: (batch, rank) factors between down and up, S(m); None for 1.
        kept: Rank to cut updates to, 0 for all.
    """

    def __init__(self, injected: Injected, shadows: Mapping[str, Sequence[LowRank]] | None = None) -> None:
        self.injected = injected
        self.strength: Tensor | None = None
        self.scale: Tensor | None = None
        self.kept = 0
        self.weights: tuple[float, ...] = ()
        self._bases: dict[tuple[str, int], Tensor] = {}
        self._handles = []
        for path, layer in injected.layers.items():
            self._handles.append(layer.lora_A[ADAPTER].register_forward_hook(self._scaled))
            self._handles.append(layer.lora_B[ADAPTER].register_forward_hook(self._turned(path)))
            if shadows and path in shadows:
                self._handles.append(layer.register_forward_hook(self._shadowed(shadows[path])))

    def remove(self) -> None:
        """Takes all hooks off."""
        for handle in self._handles:
            handle.remove()

    def _scaled(self, module: nn.Module, inputs: Any, out: Tensor) -> Tensor | None:
        return None if self.scale is None else out * _along(self.scale, out, isinstance(module, nn.Conv2d))

    def _turned(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, out: Tensor) -> Tensor | None:
            if self.strength is None and not self.kept:
                return None
            if self.kept:
                basis = self._basis(path).to(out)
                if isinstance(module, nn.Conv2d):
                    out = torch.einsum("dk,bkhw->bdhw", basis, torch.einsum("dk,bdhw->bkhw", basis, out))
                else:
                    out = (out @ basis) @ basis.T
            if self.strength is not None:
                out = out * self.strength.to(out).reshape(-1, *(1,) * (out.ndim - 1))
            return out

        return hook

    def _shadowed(self, updates: Sequence[LowRank]) -> Any:
        def hook(layer: Any, inputs: Any, out: Tensor) -> Tensor:
            for weight, update in zip(self.weights, updates, strict=True):
                if weight and update.rank:
                    out = out + weight * update.scale * _applied(update, inputs[0], layer.get_base_layer())
            return out

        return hook

    def forget(self) -> None:
        """Bases of cut ranks are computed anew, from the factors as they are now."""
        self._bases.clear()

    @torch.no_grad()
    def _basis(self, path: str) -> Tensor:
        """The ``kept`` leading left singular vectors of a layer's update, (d_out, kept)."""
        if (path, self.kept) not in self._bases:
            tensors = self.injected.tensors
            up = tensors[f"{path}.up"].flatten(1).float()
            down = tensors[f"{path}.down"].flatten(1).float()
            with torch.autocast(up.device.type, enabled=False):  # half precision has no decompositions
                q, r = torch.linalg.qr(up)
                u = torch.linalg.svd(r @ torch.linalg.qr(down.T, mode="r").R.T).U
                self._bases[path, self.kept] = q @ u[:, : self.kept]
        return self._bases[path, self.kept]

    @contextmanager
    def twin(self, factors: Mapping[str, Tensor]) -> Iterator[None]:
        """Other factors in the same layers, for as long as the context lasts; for use without gradients.

        Autocast remembers parameters in half precision by who they are, not by what they hold; it has to
        forget them at both ends, or the layers go on computing with the other's factors.
        """
        parameters = self.injected.tensors
        own = {name: parameter.data for name, parameter in parameters.items()}
        kept, self.kept = self.kept, 0
        try:
            for name, parameter in parameters.items():
                parameter.data = factors[name]
            torch.clear_autocast_cache()
            yield
        finally:
            self.kept = kept
            for name, parameter in parameters.items():
                parameter.data = own[name]
            torch.clear_autocast_cache()


def _along(scale: Tensor, out: Tensor, spatial: bool) -> Tensor:
    """(batch, rank) factors so that they multiply a layer's ranks."""
    if spatial:
        return scale.to(out)[:, :, None, None]
    return scale.to(out).reshape(len(scale), *(1,) * (out.ndim - 2), -1)


def _applied(update: LowRank, x: Tensor, base: Any) -> Tensor:
    down, up = update.down.to(x), update.up.to(x)
    if isinstance(base, nn.Conv2d):
        return F.conv2d(F.conv2d(x, down, stride=base.stride, padding=base.padding), up)
    return x @ down.T @ up.T


def adopt(injected: Injected, twin: Adapter) -> dict[str, Tensor]:
    """Begins with an adapter's factors in the first ranks; the rest stay as they were drawn.

    Returns:
        The twin's factors in the injected layers' shapes, zero beyond its ranks, to compare with.
    """
    factors = {}
    alone = injected.alpha
    for name, parameter in injected.tensors.items():
        path, _, side = name.rpartition(".")
        held = torch.zeros_like(parameter)
        update = twin.layers.get(path)
        if update is not None:
            rank, total = update.rank, parameter.shape[0 if side == "down" else 1]
            if side == "down":
                held[:rank] = update.down.to(parameter)
                parameter.data[:rank] = held[:rank]
            else:
                held[:, :rank] = update.up.to(parameter) * (update.scale * total / alone)
                parameter.data[:, :rank] = held[:, :rank]
        factors[name] = held
    return factors


def shadow_layers(shadows: Sequence[Adapter], paths: Sequence[str]) -> dict[str, list[LowRank]]:
    """The updates of other adapters by layer, of rank 0 where one has none."""
    table: dict[str, list[LowRank]] = {}
    for path in paths:
        shapes = [adapter.layers[path] for adapter in shadows if path in adapter.layers]
        if shapes:
            none = LowRank(shapes[0].down[:0], shapes[0].up[:, :0])
            table[path] = [adapter.layers.get(path, none) for adapter in shadows]
    return table
