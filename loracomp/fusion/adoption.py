"""Adapters that PEFT holds already (``pipe.load_lora_weights``), as values, and PEFT's own path set aside.

PEFT's layers stay where they are, with their adapters, strengths and selection; only the switch that each of
them has is off while ours are live.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.bases import classic_path
from loracomp.errors import UsageError
from loracomp.formats.dora import decomposed
from loracomp.formats.matrices import Dense, reduce
from loracomp.formats.reading import ERROR_KEY, RANK, TOLERANCE
from loracomp.lowrank import LowRank


@dataclass
class Adopted:
    """What PEFT held when we came.

    Attributes:
        adapters: Its active adapters, in the order in which it applies them.
        weights: Their strengths.
        switches: PEFT's layers that were switched off here.
    """

    adapters: list[Adapter] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    switches: list[Any] = field(default_factory=list)

    def silence(self) -> None:
        """Turns PEFT's own path off."""
        for layer in self.switches:
            layer._disable_adapters = True

    def restore(self) -> None:
        """Turns it on again."""
        for layer in self.switches:
            layer._disable_adapters = False


def adopt(models: Mapping[str, nn.Module], base: str) -> Adopted:
    """The active PEFT adapters of a pipeline's models, by component name.

    Adapters that are fused into the weights are part of the base and stay where they are.

    Raises:
        UsageError: An adapter of a kind that is no low-rank update, or whose best approximation misses more
            than 1 % of it, the limit that files have too.
    """
    found: dict[str, dict[str, tuple[LowRank, float]]] = {}
    errors: dict[str, float] = {}
    adopted = Adopted()
    for component, model in models.items():
        for path, layer in _active(model):
            adopted.switches.append(layer)
            for name in layer.active_adapters:
                if name in getattr(layer, layer.adapter_layer_names[0]):
                    update, ratio, missed = _update(layer, name, f"{component}.{path}")
                    found.setdefault(name, {})[classic_path(f"{component}.{path}")] = update, ratio
                    errors[name] = max(errors.get(name, 0.0), missed)
    for name, layers in found.items():
        # The strength is a property of the adapter; where blocks differ, the layers carry the difference.
        weight = next((ratio for _, ratio in layers.values() if ratio), 0.0)
        scaled = {path: u.scaled(ratio / weight) if weight else u for path, (u, ratio) in layers.items()}
        told = {ERROR_KEY: f"{errors[name]:.3g}"} if errors[name] else {}
        adopted.adapters.append(Adapter(scaled, base, name, told))
        adopted.weights.append(weight)
    return adopted


def _active(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's layers that add something of their own at the moment."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and not layer.disable_adapters and not layer.merged:
            yield path, layer


def _update(layer: Any, name: str, where: str) -> tuple[LowRank, float, float]:
    """An adapter's update in one layer at strength 1, its strength there, and the relative error."""
    variant = type(getattr(layer, "lora_variant", {}).get(name)).__name__.removesuffix("Variant")
    plain = hasattr(layer, "lora_A") and variant == "NoneType"
    if getattr(layer, "lora_bias", {}).get(name) or not (plain or _is_dense(layer, variant)):
        kind = "a bias" if plain else variant if variant != "NoneType" else type(layer).__name__
        raise UsageError(
            f"adapter {name} at {where} has {kind}, which is no low-rank update; "
            "pipe.delete_adapters it, or fuse it with pipe.fuse_lora"
        )
    if plain:
        own = layer.lora_alpha[name] / layer.r[name] ** (0.5 if layer.use_rslora.get(name) else 1.0)
        down, up = (part[name].weight.detach() for part in (layer.lora_A, layer.lora_B))
        return LowRank(down, up, own * layer.r[name]), layer.scaling[name] / own if own else 1.0, 0.0
    weight = layer.get_base_layer().weight.detach().float()
    difference = _difference(layer, name, weight, variant)
    reduced = reduce(difference, tuple(weight.shape), RANK)
    if reduced.error > TOLERANCE:
        raise UsageError(
            f"adapter {name} at {where}: the best update of rank {RANK} misses {reduced.error:.1%} of it; "
            "fuse it with pipe.fuse_lora instead"
        )
    return reduced.layer, 1.0, reduced.error


def _is_dense(layer: Any, variant: str) -> bool:
    """Whether the update can be formed as a matrix: DoRA, LoHa, LoKr and what else PEFT can give as one."""
    return variant.startswith("Dora") or (variant == "NoneType" and hasattr(layer, "get_delta_weight"))


def _difference(layer: Any, name: str, weight: Tensor, variant: str) -> Dense:
    update = layer.get_delta_weight(name).detach().float()
    if not variant.startswith("Dora"):
        return Dense(update.reshape(weight.shape).flatten(1))
    magnitude = layer.lora_magnitude_vector[name].weight.detach()
    return decomposed(weight, update.reshape(weight.shape), magnitude)
