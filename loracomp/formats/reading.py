"""Reading a LoRA file into an :class:`Adapter`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from loracomp.adapter import Adapter
from loracomp.errors import FormatError, PartialLoadError
from loracomp.formats.algebra import ALGEBRAS
from loracomp.formats.gate import DEFAULT_LIMITS, Limits, printable
from loracomp.formats.health import finite
from loracomp.formats.matching import Found, Match, match
from loracomp.formats.native import Table
from loracomp.formats.pieces import split
from loracomp.formats.scales import Stated, stated
from loracomp.formats.source import Source
from loracomp.lowrank import LowRank


def load(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    modules: Table | None = None,
    allow_partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Adapter:
    """The adapter in a LoRA file; dialect and base are recognised from the tensor table.

    Args:
        path: A ``.safetensors`` file.
        base: The base it must be made for; recognised where None.
        modules: Weight shapes by module path of a pipeline that is none of the known bases; ``base``
            then names it ("custom" where None).
        allow_partial: Leave out what has no place in the base, and layers with NaN or infinite values,
            instead of refusing the file.
        limits: What the gate for untrusted files lets through.

    Raises:
        BaseMismatchError: It was made for another base than ``base``.
        PartialLoadError: Some tensors have no place and ``allow_partial`` is False.
        FormatError: The file is missing, damaged, unsafe, no LoRA, or holds NaN or infinite values.
    """
    with Source(path, limits) as source:
        matched = match(source, base, modules)
        if matched.unmatched and not allow_partial:
            raise _partial(source, matched)
        layers = _layers(source, matched, allow_partial)
        if not layers:
            raise FormatError(f"{source.label}: no layer of it can be used; choose another file")
        return Adapter(layers, matched.place.base, Path(path).stem, source.metadata)


def _partial(source: Source, matched: Match) -> PartialLoadError:
    some = [f"{printable(key)} ({reason})" for key, reason in list(matched.unmatched.items())[:3]]
    more = len(matched.unmatched) - len(some)
    listing = ", ".join(some) + (f" and {more} more" if more else "")
    total = len(source.tensors)
    return PartialLoadError(
        f"{source.label}: {len(matched.unmatched)} of {total} tensors have no place in {matched.place.base}: "
        f"{listing}; allow a partial load to leave them out"
    )


def _layers(source: Source, matched: Match, allow_partial: bool) -> dict[str, LowRank]:
    says = stated(source.metadata, source.path)
    layers: dict[str, LowRank] = {}
    for item in matched.found:
        bad = unusable(source, item)
        if bad and allow_partial:
            continue
        if bad:
            raise FormatError(
                f"{source.label}: {bad}; train or download it again, or allow a partial load without it"
            )
        for path, layer in split(update(source, item, says), item.module).items():
            if path in layers:
                raise FormatError(
                    f"{source.label}: the layer {path} is there twice under two names; keep one of them"
                )
            layers[path] = _owned(layer)
    return layers


def unusable(source: Source, item: Found) -> str | None:
    """What makes a module's values unusable (NaN, infinity, rank beyond the limit), naming the tensor."""
    if item.rank > source.limits.rank:
        limit = source.limits.rank
        return f"the module {printable(item.name)!r} has rank {item.rank}, more than the limit of {limit}"
    for key in item.keys.values():
        values = source.view(key)
        if not values.is_floating_point():
            continue
        if not finite(values):
            return f"the tensor {printable(key)!r} holds NaN or infinite values"
    return None


def update(source: Source, item: Found, says: Stated) -> LowRank:
    """The update of one module, in the shape of the base's weight; factors may share the file's memory."""
    alpha = source.scalar(item.keys["alpha"]) if "alpha" in item.keys else None
    if alpha is None:
        alpha = says.alpha(item.module.pieces[0].path, item.rank)
    factors = {role: source.view(key) for role, key in item.keys.items() if role != "alpha"}
    return shaped(ALGEBRAS[item.algebra].build(factors, alpha), item.module.shape)


def shaped(layer: LowRank, shape: tuple[int, ...]) -> LowRank:
    """The same update with the axes of the weight: linear factors of a 1×1 convolution and the reverse."""
    if layer.weight_shape == shape:
        return layer
    tail = (1,) * (len(shape) - 2)
    down = layer.down.reshape(layer.rank, *shape[1:])
    return LowRank(down, layer.up.reshape(*layer.up.shape[:2], *tail), layer.alpha)


def _owned(layer: LowRank) -> LowRank:
    return LowRank(layer.down.clone(), layer.up.clone(), layer.alpha)


def header_metadata(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> Mapping[str, str]:
    """The strings in a file's header; raises :class:`FormatError` where the gate refuses the file."""
    with Source(path, limits) as source:
        return dict(source.metadata)
