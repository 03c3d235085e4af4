"""Every name a layer can have in a file, generated from the base's table of layers.

A file's module names are looked up here and nowhere altered: kohya's flattening of dots to underscores
loses information (``to_q`` holds an underscore itself), so the flattened form of each known name is
made instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType

from loracomp.bases import BASES, get_base, modules
from loracomp.formats.native import Module, Table, native, whole, xlabs

_TEXT_PREFIXES = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"}
_COMFY_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
_OLD_ATTENTION = {".to_q": "to_q", ".to_k": "to_k", ".to_v": "to_v", ".to_out.0": "to_out"}
_OLD_TEXT = {".q_proj": "to_q", ".k_proj": "to_k", ".v_proj": "to_v", ".out_proj": "to_out"}
CUSTOM = "custom"


@dataclass(frozen=True)
class Layout:
    """A base's layers and the facts that its names in files follow from.

    Attributes:
        base: Name of the base.
        table: Weight shape by module path.
        prefixes: kohya's prefix of each component.
        sgm: Whether kohya names UNet blocks as the original code does.
    """

    base: str
    table: Table
    prefixes: Mapping[str, str]
    sgm: bool = False

    @cached_property
    def denoiser(self) -> str:
        """Component that denoises: ``unet`` or ``transformer``."""
        return "unet" if any(path.startswith("unet.") for path in self.table) else "transformer"


def layout(base: str, table: Table | None = None) -> Layout:
    """The layout of a base, with the layers of ``table`` instead of the base's own where given.

    Raises:
        UnknownNameError: No table is given and the base is not known.
    """
    if base in BASES or table is None:
        row = get_base(base)
        return Layout(base, table or modules(base), row.kohya_prefixes, row.kohya_sgm)
    encoders = sorted({p.split(".")[0] for p in table if p.startswith("text_encoder")})
    prefixes = {"unet": "lora_unet", "transformer": "lora_unet"}
    prefixes |= _TEXT_PREFIXES if len(encoders) > 1 else {"text_encoder": "lora_te"}
    return Layout(base, table, prefixes)


@dataclass(frozen=True)
class Named:
    """A module and the dialect whose name for it was found."""

    module: Module
    dialect: str


def every_name(place: Layout) -> Mapping[str, Named]:
    """All names of all layers in all dialects; the first dialect that has a name keeps it."""
    if place.base in BASES and place.table is modules(place.base):
        return _known(place.base)
    return _collect(place)


@cache
def _known(base: str) -> Mapping[str, Named]:
    return MappingProxyType(_collect(layout(base)))


def _collect(place: Layout) -> dict[str, Named]:
    found: dict[str, Named] = {}
    for name, module, dialect in _pairs(place):
        found.setdefault(name, Named(module, dialect))
    return found


def flat(name: str) -> str:
    """A dotted name as kohya writes it."""
    return name.replace(".", "_")


def kohya_names(place: Layout) -> Iterator[tuple[str, Module]]:
    """kohya's own name of each module: original block names where its trainer uses the original code."""
    denoiser = place.denoiser
    prefix = place.prefixes.get(denoiser, "lora_unet")
    if denoiser == "transformer" or place.sgm:
        for name, module in native(place.table, denoiser).items():
            yield f"{prefix}_{flat(name)}", module
    for path, shape in place.table.items():
        component, _, inside = path.partition(".")
        if component in place.prefixes and (component != denoiser or (denoiser == "unet" and not place.sgm)):
            yield f"{place.prefixes[component]}_{flat(inside)}", whole(path, shape)


def comfy_names(place: Layout) -> Iterator[tuple[str, Module]]:
    """ComfyUI's own name of each module: the original code's name, and text encoders by their kind."""
    for name, module in native(place.table, place.denoiser).items():
        yield f"diffusion_model.{name}", module
    for path, shape in place.table.items():
        component, _, inside = path.partition(".")
        if component != place.denoiser:
            yield _comfy_encoder(component, inside), whole(path, shape)


def _comfy_encoder(component: str, inside: str) -> str:
    encoder = "t5xxl" if inside.startswith("encoder.block") else _COMFY_ENCODERS.get(component, component)
    return f"text_encoders.{encoder}.transformer.{inside}"


def old_name(path: str) -> str | None:
    """The name that diffusers' attention processors had, such as ``….attn1.processor.to_q_lora``."""
    for ending, short in _OLD_ATTENTION.items():
        if ".attn" in path and path.endswith(ending):
            return f"{path.removesuffix(ending)}.processor.{short}_lora"
    return None


def _pairs(place: Layout) -> Iterator[tuple[str, Module, str]]:
    for name, module in kohya_names(place):
        yield name, module, "kohya"
    originals = native(place.table, place.denoiser)
    for name, module in originals.items():
        yield f"diffusion_model.{name}", module, "comfyui"
        yield name, module, "bfl"
        yield f"base_model.model.{name}", module, "bfl"
        yield f"lora_unet_{flat(name)}", module, "kohya"
    for name, module in xlabs(place.table, place.denoiser).items():
        yield name, module, "xlabs"
        yield f"diffusion_model.{name}", module, "xlabs"
    for path, shape in place.table.items():
        module = whole(path, shape)
        for name, dialect in _dotted(path, place):
            yield name, module, dialect
        for name, dialect in _flattened(path, place):
            yield name, module, dialect


def _dotted(path: str, place: Layout) -> Iterator[tuple[str, str]]:
    component, _, inside = path.partition(".")
    for form in _with_and_without_text_model(inside):
        yield f"{component}.{form}", "diffusers"
        yield f"base_model.model.{component}.{form}", "peft"
        if component in (place.denoiser, "text_encoder"):
            yield f"base_model.model.{form}", "peft"
            yield form, "bare"
        if component == place.denoiser:
            yield f"diffusion_model.{form}", "comfyui"
        else:
            yield _comfy_encoder(component, form), "comfyui"
    if component == place.denoiser and (name := old_name(path)):
        yield name, "diffusers-old"
        yield name.partition(".")[2], "diffusers-old"
    for ending, short in _OLD_TEXT.items():
        if component.startswith("text_encoder") and path.endswith(ending):
            yield f"{path.removesuffix(ending)}.{short}_lora", "diffusers-old"


def _flattened(path: str, place: Layout) -> Iterator[tuple[str, str]]:
    component, _, inside = path.partition(".")
    for form in map(flat, _with_and_without_text_model(inside)):
        if component == place.denoiser:
            yield f"lora_unet_{form}", "kohya"
            yield f"lora_transformer_{form}", "onetrainer"
            yield f"lycoris_{form}", "lycoris"
        else:
            yield f"{place.prefixes.get(component, _TEXT_PREFIXES.get(component, component))}_{form}", "kohya"
        if component == "text_encoder":
            yield f"lora_te_{form}", "kohya"
            yield f"lora_te1_{form}", "kohya"


def _with_and_without_text_model(inside: str) -> tuple[str, ...]:
    bare = inside.removeprefix("text_model.")
    return (inside,) if bare == inside else (inside, bare)
