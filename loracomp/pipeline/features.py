"""How far the outputs of adapters point the same way on the activations of a real run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank
from loracomp.pipeline.layers import Places, places_of
from loracomp.pipeline.sampling import Setting, sample

CALIBRATION = Setting(("{words}",), seeds=1, steps=4)
"""Four timesteps of one picture per adapter."""


def feature_cosines(
    pipe: Any, adapters: Sequence[Adapter], setting: Setting = CALIBRATION
) -> dict[str, Tensor]:
    """Mean |cos| over tokens between the outputs that adapters add, by layer that two of them change.

    The base runs on every adapter's own prompts. Outputs are never formed: with hᵢ = Aᵢ x, the inner product
    of two of them is hᵢᵀ (BᵢᵀBⱼ) hⱼ.

    Args:
        pipe: A pipeline of the adapters' base, without adapters.
        adapters: What to compare.
        setting: Prompts, seeds and steps.

    Returns:
        Shape (adapters, adapters), symmetric, in [0, 1], NaN where either leaves the layer alone.

    Raises:
        BaseMismatchError: An adapter does not fit the pipeline.
    """
    places: Places = {p: v for p, v in places_of(pipe, adapters).items() if len(v[1]) > 1}
    meters = {path: _Meter(module, layers, len(adapters)) for path, (module, layers) in places.items()}
    handles = [place[0].register_forward_hook(meters[path]) for path, place in places.items()]
    try:
        for adapter in adapters:
            sample(pipe, setting, setting.prompts(adapter), [], 0.0)
    finally:
        for handle in handles:
            handle.remove()
    return {path: meter.mean() for path, meter in meters.items() if meter.calls}


class _Meter:
    """Watches one module."""

    def __init__(self, module: nn.Module, layers: Sequence[tuple[int, LowRank]], count: int) -> None:
        device = next(module.parameters()).device
        self.downs = {i: u.down.to(device, torch.float32) for i, u in layers}
        self.ups = {i: u.up.flatten(1).to(device, torch.float32) for i, u in layers}
        self.hidden = _hidden(module)
        self.sums = torch.full((count, count), float("nan"), dtype=torch.float64)
        self.calls = 0

    @torch.inference_mode()
    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        parts = {i: self.hidden(inputs[0].float(), down) for i, down in self.downs.items()}
        sizes = {i: _inner(h, h, self.ups[i].T @ self.ups[i]).clamp_min(0).sqrt() for i, h in parts.items()}
        for i, j in combinations(parts, 2):
            both = _inner(parts[i], parts[j], self.ups[i].T @ self.ups[j])
            scale = sizes[i] * sizes[j]
            seen = scale > 0
            value = (
                float((both.abs() / scale.where(seen, 1.0))[seen].clamp(max=1).mean()) if seen.any() else 0.0
            )
            for row, column in ((i, j), (j, i)):
                before = self.sums[row, column]
                self.sums[row, column] = value if before.isnan() else before + value
        self.calls += 1

    def mean(self) -> Tensor:
        """Mean over the calls."""
        return self.sums / self.calls


def _hidden(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The function from input and down factor to hidden values (tokens, rank)."""
    if not isinstance(module, nn.Conv2d):
        return lambda x, down: (x @ down.flatten(1).T).flatten(0, -2)
    options: dict[str, Any] = {n: getattr(module, n) for n in ("stride", "padding", "dilation")}
    return lambda x, down: torch.nn.functional.conv2d(x, down, **options).movedim(1, -1).flatten(0, -2)


def _inner(first: Tensor, second: Tensor, gram: Tensor) -> Tensor:
    """hᵢᵀ (BᵢᵀBⱼ) hⱼ of each token, shape (tokens,)."""
    return ((first @ gram) * second).sum(1)
