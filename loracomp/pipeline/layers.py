"""What a pipeline is made of, and where the updates of adapters belong in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.bases import BASES, DIT_TARGETS, UNET_TARGETS, classic_path, fit
from loracomp.errors import BaseMismatchError, UsageError
from loracomp.formats.updates import Weights
from loracomp.fusion.stacked import reshape, weight_shape
from loracomp.lowrank import LowRank

__all__ = [
    "base_of",
    "default_targets",
    "denoiser_of",
    "layers_of",
    "own_layers",
    "places_of",
    "text_encoders_of",
    "weight_shape",
    "weights_of",
]

Places = dict[str, tuple[nn.Module, list[tuple[int, LowRank]]]]
"""Modules by path, each with (index of the adapter, its update) pairs."""

_INSIDE_PEFT = ("base_layer", "lora_A", "lora_B")


def denoiser_of(pipe: Any) -> tuple[str, nn.Module]:
    """Name and module of a pipeline's denoiser; raises :class:`UsageError` where it has none."""
    for name in dict.fromkeys(base.denoiser for base in BASES.values()):
        model = getattr(pipe, name, None)
        if model is not None:
            # A model that was wrapped by torch.compile; its parts are those of the model inside.
            return name, getattr(model, "_orig_mod", model)
    raise UsageError(f"{type(pipe).__name__} has neither a unet nor a transformer to attach adapters to")


def text_encoders_of(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's text encoders by name."""
    names = dict.fromkeys(name for base in BASES.values() for name in base.text_encoders)
    found = {name: getattr(pipe, name, None) for name in names}
    return {name: model for name, model in found.items() if isinstance(model, nn.Module)}


def layers_of(pipe: Any) -> dict[str, nn.Module]:
    """Linear and convolution layers of the denoiser and the text encoders, by classic module path."""
    models = dict(sorted([denoiser_of(pipe), *text_encoders_of(pipe).items()]))
    return {
        classic_path(f"{name}.{path}"): module
        for name, model in models.items()
        for path, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) in (2, 4)
        and hasattr(module, "bias")
        and not set(_INSIDE_PEFT) & set(path.split("."))
    }


def base_of(pipe: Any) -> str:
    """Name of the base that the pipeline's layers belong to, or its class name for an unknown one."""
    shapes = {path: weight_shape(layer) for path, layer in layers_of(pipe).items()}
    name = max(BASES, key=lambda base: fit(shapes, base))
    return name if fit(shapes, name) > 0.9 else type(pipe).__name__


def own_layers(pipe: Any) -> dict[str, tuple[int, ...]] | None:
    """Weight shapes by classic path of a pipeline with an architecture of its own; None for a known base."""
    if base_of(pipe) in BASES:
        return None
    return {path: weight_shape(layer) for path, layer in layers_of(pipe).items()}


def weights_of(pipe: Any) -> Weights:
    """The pipeline's own weights by module path, which :func:`loracomp.load` converts DoRA files with."""
    layers = layers_of(pipe)

    def weight(path: str) -> Tensor:
        values: Tensor = layers[path].weight  # type: ignore[assignment]
        return values.detach()

    return weight


def default_targets(pipe: Any) -> tuple[str, ...]:
    """Suffixes of the layers that adapters for this pipeline change as a rule, denoiser only."""
    base = base_of(pipe)
    if base in BASES:
        return BASES[base].targets
    return UNET_TARGETS if denoiser_of(pipe)[0] == "unet" else DIT_TARGETS


def places_of(pipe: Any, adapters: Sequence[Adapter]) -> Places:
    """The modules that the adapters change.

    Raises:
        BaseMismatchError: A layer of an adapter is not in the pipeline, or of another shape.
    """
    layers = layers_of(pipe)
    places: Places = {}
    for index, adapter in enumerate(adapters):
        for path, update in adapter.layers.items():
            module = layers.get(path)
            if module is None:
                raise _mismatch(pipe, adapter, f"the base has no layer {path}")
            try:
                fitted = reshape(update, weight_shape(module))
            except ValueError as error:
                raise _mismatch(pipe, adapter, f"{path}: {error}") from error
            places.setdefault(path, (module, []))[1].append((index, fitted))
    return places


def _mismatch(pipe: Any, adapter: Adapter, why: str) -> BaseMismatchError:
    title = BASES[adapter.base].title if adapter.base in BASES else adapter.base
    here = base_of(pipe)
    return BaseMismatchError(adapter.name, title, BASES[here].title if here in BASES else here, why)
