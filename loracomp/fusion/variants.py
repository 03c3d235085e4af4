"""From what users say about adapters to gate programs: one for all images, or one per image of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from loracomp.adapter import Adapter
from loracomp.bases import BASES, modules
from loracomp.errors import UnknownNameError, UsageError
from loracomp.fusion import blocks
from loracomp.fusion.blockweights import blocks_of
from loracomp.fusion.program import METHODS, Profile, Program
from loracomp.fusion.quote import Quote
from loracomp.fusion.syntax import Term

AXES = ("weight", "method")


@dataclass(frozen=True)
class Variant:
    """What sets one image of a batch apart.

    Attributes:
        weights: Strength by position of the adapter, where it is another one.
        method: Another composition method; empty for the same.
    """

    weights: Mapping[int, float] = field(default_factory=dict)
    method: str = ""

    def of(self, program: Program) -> Program:
        """The program, changed in this way."""
        weights = tuple(self.weights.get(index, weight) for index, weight in enumerate(program.weights))
        return replace(program, weights=weights, method=self.method or program.method)


def named(name: str, sources: Sequence[str], what: str) -> int:
    """Position of the adapter that a user calls ``name``, by its source or its file's name.

    Raises:
        UnknownNameError: None of them.
    """
    known = {Path(source).stem: index for index, source in reversed(list(enumerate(sources)))}
    known |= {source: index for index, source in reversed(list(enumerate(sources)))}
    if name not in known:
        raise UnknownNameError(f"adapter in {what}", name, known)
    return known[name]


def read_variants(texts: Sequence[str], sources: Sequence[str]) -> tuple[Variant, ...]:
    """Every combination of what ``--vary`` says: ``weight=NAME:0,0.5,1`` or ``method=merge,switch``.

    The last one given varies fastest. Raises :class:`UsageError`.
    """
    axes = [_axis(text, sources) for text in texts]
    return tuple(
        Variant(
            {index: weight for variant in combination for index, weight in variant.weights.items()},
            next((variant.method for variant in combination if variant.method), ""),
        )
        for combination in product(*axes)
    )


def _axis(text: str, sources: Sequence[str]) -> list[Variant]:
    label = f"--vary {text}"
    kind, values = Quote(text, 0, label).cut("=")
    if kind.value not in AXES or values is None:
        kind.fail("write weight=NAME:0,0.5,1 or method=merge,switch")
    if kind.value == "method":
        for part in values.split(","):
            METHODS.entry(part.value)
        return [Variant(method=part.value) for part in values.split(",")]
    name, colon, _ = values.value.rpartition(":")
    if not colon:
        values.fail("write weight=NAME:0,0.5,1")
    numbers = replace(values, value=values.value[len(name) + 1 :], start=values.start + len(name) + 1)
    index = named(name, sources, label)
    return [Variant({index: part.number()}) for part in numbers.split(",")]


def profile_of(term: Term, adapter: Adapter) -> Profile:
    """A term's profile with ``lbw=`` and ``unet=0`` as factors of the blocks that the adapter has."""
    found: dict[str, float] = {}
    if term.lbw:
        paths = modules(adapter.base) if adapter.base in BASES else adapter.layers
        found |= blocks_of(term.lbw, paths)
    if term.silent:
        found |= {blocks.ANY: 0.0, "text": 1.0}
    known = blocks.known(adapter.layers)
    kept = {name: value for name, value in found.items() if name in known}
    return replace(term.profile, blocks=kept | dict(term.profile.blocks))


def program_of(
    terms: Sequence[Term], adapters: Sequence[Adapter], method: str, options: Mapping[str, Any]
) -> Program:
    """The program that terms stand for; without profiles where none says more than a strength."""
    profiles = tuple(profile_of(term, adapter) for term, adapter in zip(terms, adapters, strict=True))
    weights = tuple(term.weight for term in terms)
    return Program(
        method, weights, options, profiles=profiles if any(p != Profile() for p in profiles) else ()
    )


def fitted(program: Program, adapters: Sequence[Adapter], where: str) -> Program:
    """A program from a file for these adapters; accelerators behind its own adapters are at 1.

    Raises:
        UsageError: It is for another number of adapters.
    """
    count = len(adapters)
    weights = program.weights or (1.0,) * count
    missing = adapters[len(weights) :]
    if len(weights) > count or any(adapter.accelerator is None for adapter in missing):
        raise UsageError(f"{where}: {len(weights)} weights for {count} adapters; name as many with --lora")
    extra = (Profile(),) * len(missing) if program.profiles else ()
    return replace(program, weights=weights + (1.0,) * len(missing), profiles=program.profiles + extra)
