"""Reading a LoRA file into an :class:`Adapter`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loracomp.adapter import Adapter
from loracomp.errors import FormatError, PartialLoadError
from loracomp.formats.gate import DEFAULT_LIMITS, Limits, printable
from loracomp.formats.matching import Match, match
from loracomp.formats.native import Table
from loracomp.formats.pieces import split
from loracomp.formats.scales import stated
from loracomp.formats.source import Source
from loracomp.formats.updates import NEEDS_WEIGHTS, UnusableError, Weights, low_rank, read
from loracomp.lowrank import LowRank

RANK = 256
TOLERANCE = 0.01
ERROR_KEY = "loracomp.approximation_error"


@dataclass
class Loaded:
    """What :func:`load_parts` found.

    Attributes:
        layers: Updates by module path.
        match: How the file fits the base.
        problems: Why a tensor was left out, by tensor name.
        errors: Relative error of a layer that had to be approximated, by module name in the file.
    """

    match: Match
    problems: dict[str, str]
    layers: dict[str, LowRank] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


def load(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    modules: Table | None = None,
    allow_partial: bool = False,
    rank: int = RANK,
    weights: Weights | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Adapter:
    """The adapter in a LoRA file; dialect, algebra and base are recognised from the tensor table.

    Args:
        path: A ``.safetensors`` file.
        base: The base it must be made for; recognised where None.
        modules: Weight shapes by module path of a pipeline that is none of the known bases; ``base``
            then names it ("custom" where None).
        allow_partial: Leave out what has no place in the base or holds NaN, and take approximations,
            instead of refusing the file.
        rank: Largest rank for updates that are not stored as one product (LoHa, LoKr, full
            difference, DoRA). They are exact up to it, and refused if the best approximation misses
            more than 1 % of the update's norm.
        weights: The base's weight by module path, which DoRA needs.
        limits: What the gate for untrusted files lets through.

    Raises:
        BaseMismatchError: It was made for another base than ``base``.
        PartialLoadError: Some tensors have no place or no exact form and ``allow_partial`` is False.
        FormatError: The file is missing, damaged, unsafe, no LoRA, or holds NaN or infinite values.
    """
    with Source(path, limits) as source:
        matched = match(source, base, modules)
        if matched.unmatched and not allow_partial:
            raise partial_load(source, matched, matched.unmatched)
        loaded = load_parts(source, matched, rank, weights, strict=not allow_partial)
        if loaded.problems and not allow_partial:
            raise partial_load(source, matched, loaded.problems)
        worst = max(loaded.errors.values(), default=0.0)
        if worst > TOLERANCE and not allow_partial:
            raise coarse(source, loaded.errors, rank)
        if not loaded.layers:
            raise FormatError(f"{source.label}: no layer of it can be used; choose another file")
        strings = dict(source.metadata) | ({ERROR_KEY: f"{worst:.3g}"} if worst else {})
        return Adapter(loaded.layers, matched.place.base, Path(path).stem, strings)


def load_parts(
    source: Source, matched: Match, rank: int, weights: Weights | None = None, *, strict: bool = False
) -> Loaded:
    """All layers of a file that can be used, and what was left out or approximated.

    Raises:
        FormatError: ``strict`` and a module's values are not usable; or a layer is there twice.
    """
    says = stated(source.metadata, source.path)
    out = Loaded(matched, dict(matched.unmatched))
    for item in matched.found:
        try:
            update = read(source, item, says, weights)
            layer, missed = low_rank(item, update, rank)
        except UnusableError as error:
            if strict:
                raise unusable(source, error) from None
            out.problems |= dict.fromkeys(item.keys.values(), str(error))
            continue
        if "magnitude" in item.keys and weights is None:
            out.problems[item.keys["magnitude"]] = NEEDS_WEIGHTS
        if missed:
            out.errors[item.name] = missed
        for path, part in split(layer, item.module).items():
            if path in out.layers:
                raise FormatError(
                    f"{source.label}: the layer {path} is there twice under two names; keep one"
                )
            out.layers[path] = part
    return out


def unusable(source: Source, error: UnusableError) -> FormatError:
    """The error that says why the values of a module cannot be used."""
    advice = "train or download it again, or allow a partial load without it"
    return FormatError(f"{source.label}: {error}; {advice}")


def partial_load(source: Source, matched: Match, problems: Mapping[str, str]) -> PartialLoadError:
    """The error that names the first tensors that have no place, and why."""
    some = [f"{printable(key)} ({reason})" for key, reason in list(problems.items())[:3]]
    more = len(problems) - len(some)
    listing = ", ".join(some) + (f" and {more} more" if more else "")
    return PartialLoadError(
        f"{source.label}: {len(problems)} of {len(source.tensors)} tensors have no place in "
        f"{matched.place.base}: {listing}; allow a partial load to leave them out"
    )


def coarse(source: Source, errors: Mapping[str, float], rank: int) -> PartialLoadError:
    """The error for modules that need more than a rank, from their relative errors at that rank."""
    name = max(errors, key=lambda item: errors[item])
    return PartialLoadError(
        f"{source.label}: {len(errors)} modules need more than rank {rank} (at that rank "
        f"{printable(name)} misses {errors[name]:.1%}); raise the rank or allow a partial load"
    )
