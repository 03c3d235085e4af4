"""Dialects that loracomp writes: an adapter's layers as named tensors.

kohya states the strength of each module in a tensor ``.alpha``, which every consumer of that dialect
reads. The others state it only in the header, which many consumers ignore, so there the scale is
multiplied into a factor and the header says alpha = rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import frexp

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.formats.health import finite
from loracomp.formats.names import Layout, comfy_names, kohya_names, old_name
from loracomp.formats.native import Module
from loracomp.formats.pieces import fold, join, times
from loracomp.lowrank import LowRank
from loracomp.registry import Registry

Tensors = dict[str, Tensor]
Writer = Callable[[Adapter, Layout], Tensors]
DIALECTS: Registry[Writer] = Registry("dialect", "loracomp.dialects")
_OLD_TEXT = (".q_proj", ".k_proj", ".v_proj", ".out_proj", ".fc1", ".fc2")


@DIALECTS.register("kohya", summary="A1111, Forge, ComfyUI, InvokeAI: underscored names, alpha tensors")
def kohya(adapter: Adapter, place: Layout) -> Tensors:
    """Names as sd-scripts writes them for the base (SGM blocks for SDXL, fused q-k-v for SD3 and FLUX).

    Raises:
        UsageError: The base's own code has no such layer.
    """
    layers = one_alpha(adapter) if place.denoiser == "unet" else _own_alphas(adapter)
    return _joined(
        layers,
        kohya_names(place),
        (".lora_down.weight", ".lora_up.weight"),
        _lacking(adapter, place, "kohya"),
    )


@DIALECTS.register("comfyui", summary="ComfyUI alone: the base's own names, alpha tensors")
def comfyui(adapter: Adapter, place: Layout) -> Tensors:
    """The original code's names behind ``diffusion_model.``, ``text_encoders.`` for the encoders.

    Raises:
        UsageError: The base's own code has no such layer.
    """
    names = comfy_names(place)
    return _joined(
        _own_alphas(adapter),
        names,
        (".lora_down.weight", ".lora_up.weight"),
        _lacking(adapter, place, "ComfyUI"),
    )


def _own_alphas(adapter: Adapter) -> dict[str, tuple[LowRank, bool]]:
    return {path: (layer, True) for path, layer in adapter.layers.items()}


def _joined(
    layers: Mapping[str, tuple[LowRank, bool]],
    names: Iterable[tuple[str, Module]],
    ends: tuple[str, str],
    lacking: str,
) -> Tensors:
    """The layers under modules' names, those of one module joined, with alphas where they are wanted."""
    tensors: Tensors = {}
    left = dict(layers)
    for name, module in names:
        there = {piece.path: left.pop(piece.path) for piece in module.pieces if piece.path in left}
        if not there:
            continue
        layer = join({path: layer for path, (layer, _) in there.items()}, module)
        tensors |= _pair(name, layer, ends)
        if all(written for _, written in there.values()):
            tensors[f"{name}.alpha"] = torch.tensor(_alpha(layer), dtype=torch.float32)
    if left:
        raise UsageError(
            f"{lacking} for the layer {next(iter(left))} ({len(left)} such layers); "
            "write the diffusers dialect"
        )
    return tensors


def _lacking(adapter: Adapter, place: Layout, kind: str) -> str:
    return f"{adapter.name}: {place.base} has no {kind} name"


@DIALECTS.register(
    "diffusers", summary="diffusers, ComfyUI, InvokeAI (FLUX): dotted names, lora_A and lora_B"
)
def diffusers(adapter: Adapter, place: Layout) -> Tensors:
    """Dotted names with the component in front, as diffusers' training scripts write them."""
    return dict(_folded(adapter, lambda path: path, (".lora_A.weight", ".lora_B.weight")))


@DIALECTS.register("peft", summary="PEFT: base_model.model. in front of dotted names")
def peft(adapter: Adapter, place: Layout) -> Tensors:
    """Names inside the component where the adapter has one only, as PEFT saves a model's adapter."""
    single = len(adapter.components) == 1

    def name(path: str) -> str:
        return f"base_model.model.{path.partition('.')[2] if single else path}"

    return dict(_folded(adapter, name, (".lora_A.weight", ".lora_B.weight")))


@DIALECTS.register(
    "diffusers-old", summary="diffusers before PEFT: attention processors, lora.down and lora.up"
)
def diffusers_old(adapter: Adapter, place: Layout) -> Tensors:
    """Processor names for attention, ``lora_linear_layer`` in text encoders, ``lora`` elsewhere."""
    tensors: Tensors = {}
    for path, layer in adapter.layers.items():
        component = path.partition(".")[0]
        if component == "unet" and (processor := old_name(path)):
            stem = processor
        elif component.startswith("text_encoder") and path.endswith(_OLD_TEXT):
            stem = f"{path}.lora_linear_layer"
        else:
            stem = f"{path}.lora"
        tensors |= _pair(stem, fold(layer), (".down.weight", ".up.weight"))
    return tensors


def one_alpha(adapter: Adapter) -> dict[str, tuple[LowRank, bool]]:
    """The layers, and whether to write their alpha, such that all tools agree on the strength.

    diffusers 0.42 reads the alphas of attention layers in UNets and text encoders under names that
    match no layer and gives each the commonest alpha of its component, so only files with one alpha,
    or without any (every tool then takes alpha = rank), have the same strength everywhere. Ratios go
    into a factor; powers of two are exact, others one rounding, and the way with fewer of them is taken.
    Alphas so far apart that the factors cannot hold their ratios stay as they are.
    """
    layers: dict[str, tuple[LowRank, bool]] = {}
    for component in adapter.components:
        part = {path: layer for path, layer in adapter.layers.items() if path.startswith(f"{component}.")}
        alphas = Counter(_alpha(layer) for layer in part.values())
        common = max(alphas, key=lambda alpha: (alphas[alpha], alpha))
        rounded_one = (
            sum(not _exact(_alpha(layer) / common) for layer in part.values()) if common else len(part)
        )
        rounded_none = sum(not _exact(layer.scale) for layer in part.values())
        if len(alphas) == 1:
            layers |= {path: (layer, True) for path, layer in part.items()}
            continue
        if rounded_none < rounded_one or not common:
            made = {path: (fold(layer), False) for path, layer in part.items()}
        else:
            ratios = {path: _alpha(layer) / common for path, layer in part.items()}
            made = {
                path: (times(LowRank(x.down, x.up, common), ratios[path]), True) for path, x in part.items()
            }
        held = all(_held(layer, made[path][0]) for path, layer in part.items())
        layers |= made if held else {path: (layer, True) for path, layer in part.items()}
    return layers


def _held(old: LowRank, new: LowRank) -> bool:
    """Whether no factor overflowed or vanished."""
    pairs = ((old.up, new.up), (old.down, new.down))
    return all(finite(b) and (bool(b.any()) or not bool(a.any())) for a, b in pairs) or _alpha(old) == 0


def _exact(ratio: float) -> bool:
    """Whether multiplying with a ratio rounds nothing: a power of two (or zero)."""
    return ratio == 0 or abs(frexp(ratio)[0]) == 0.5


def _alpha(layer: LowRank) -> float:
    return float(layer.rank) if layer.alpha is None else layer.alpha


def _folded(
    adapter: Adapter, name: Callable[[str], str], ends: tuple[str, str]
) -> Iterator[tuple[str, Tensor]]:
    for path, layer in adapter.layers.items():
        yield from _pair(name(path), fold(layer), ends).items()


def _pair(name: str, layer: LowRank, ends: tuple[str, str]) -> Tensors:
    return {f"{name}{ends[0]}": layer.down, f"{name}{ends[1]}": layer.up}


def states_alpha_in_header(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file of these tensors needs the header to say that alpha equals the rank."""
    return not any(key.endswith(".alpha") for key in tensors)
