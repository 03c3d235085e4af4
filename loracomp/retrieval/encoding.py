"""A LoRA file as a row of the index: facts from its header, features from its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loracomp.adapter import Adapter
from loracomp.errors import FormatError, LoracompError
from loracomp.formats.gate import DEFAULT_LIMITS, Limits, printable
from loracomp.formats.matching import Match, match
from loracomp.formats.sketches import canonical_hash
from loracomp.formats.source import Source
from loracomp.retrieval.bank import ProbeBank
from loracomp.retrieval.features import Features, features
from loracomp.retrieval.layers import read_layers
from loracomp.retrieval.sites import SiteTable, site_table
from loracomp.retrieval.stacks import Held, Plan, hold, plan_of, stacked_features

_LONGEST = 2000
# The exit code of Ctrl-C, which says nothing of the file at hand.
_INTERRUPTED = 130
_TEXT_KEYS = ("modelspec.title", "modelspec.description", "modelspec.tags", "ss_output_name")


@dataclass(frozen=True)
class Facts:
    """What a file says of itself and what its table of tensors shows. Said things are claims, not facts.

    Attributes:
        id: SHA-256 over the tensor bytes, hexadecimal; the key of the index.
        path: Where the file was found.
        name: The file's name without its ending.
        base: Base it was made for.
        licence: ``modelspec.license`` as claimed, empty where nothing is.
        words: Title, description, tags and trigger words as claimed, for search by words.
        trigger: Trigger words as claimed, with commas.
        kind: Algebras, with commas (``lora``, ``loha``, …).
        dialect: Dialect of the names.
        rank: Largest rank.
        sites: Number of layers changed.
        groups: Groups of layers changed, with commas.
        bytes: Size of the file.
        norm: ‖ΔW‖ over all layers.
        complete: Whether every tensor had a place.
        delta: Hash of ΔW, equal for equal updates up to rounding.
    """

    id: str
    path: str
    name: str
    base: str
    licence: str
    words: str
    trigger: str
    kind: str
    dialect: str
    rank: int
    sites: int
    groups: str
    bytes: int
    norm: float
    complete: bool
    delta: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """One file, encoded."""

    facts: Facts
    features: Features


def encode_file(
    path: str | os.PathLike[str],
    *,
    banks: Mapping[str, ProbeBank] | None = None,
    base: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Encoded:
    """The facts and features of a LoRA file.

    Args:
        path: A ``.safetensors`` file.
        banks: Text probes by base.
        base: The base it must be for; recognised where None.
        limits: What the gate for untrusted files lets through.

    Raises:
        FormatError: The file is missing, damaged, unsafe, no LoRA, for another base, changes nothing, or
            holds values that are not finite.
    """
    found = encode_files([path], banks=banks, base=base, limits=limits)[0]
    if isinstance(found, LoracompError):
        raise found
    return found


def encode_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    banks: Mapping[str, ProbeBank] | None = None,
    base: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Encoded | LoracompError]:
    """Facts and features of a few LoRA files, or why there are none; small files of one layout together.

    Args:
        paths: Files, held in memory together where they are small (:data:`~loracomp.retrieval.stacks.SMALL`).
        banks: As for :func:`encode_file`, like the rest.
        base: The base they must be for.
        limits: What is let through.
    """
    out: dict[int, Encoded | LoracompError] = {}
    waiting: dict[Plan, list[tuple[int, _Open, Held]]] = {}
    with ExitStack() as closing:
        for place, path in enumerate(paths):
            try:
                source = closing.enter_context(Source(path, limits))
                matched = match(source, base)
                file = _Open(source, matched, site_table(matched.place.base))
                plan = plan_of(source, matched, file.table)
                if plan:
                    waiting.setdefault(plan, []).append((place, file, hold(source, plan)))
                else:
                    out[place] = _alone(file, banks or {})
            except LoracompError as error:
                if error.exit_code == _INTERRUPTED:
                    raise
                out[place] = error
        for plan, held in waiting.items():
            out |= _together(plan, held, banks or {})
    return [out[place] for place in range(len(paths))]


@dataclass(frozen=True, eq=False)
class _Open:
    """A file that passed the gate and fits a base."""

    source: Source
    matched: Match
    table: SiteTable


def _together(
    plan: Plan, files: Sequence[tuple[int, _Open, Held]], banks: Mapping[str, ProbeBank]
) -> dict[int, Encoded | LoracompError]:
    table = files[0][1].table
    try:
        found = stacked_features(plan, [held for *_, held in files], table, banks.get(table.base))
    except FloatingPointError:
        # One of them is broken; which one, and how, shows when they are read one by one.
        return {place: _or_why(file, banks) for place, file, _ in files}
    return {
        place: _encoded(file, plan.places, plan.rank, held.identity, one)
        for (place, file, held), one in zip(files, found, strict=True)
    }


def _or_why(file: _Open, banks: Mapping[str, ProbeBank]) -> Encoded | LoracompError:
    try:
        return _alone(file, banks)
    except FormatError as error:
        return error


def _alone(file: _Open, banks: Mapping[str, ProbeBank]) -> Encoded | LoracompError:
    layers, identity = read_layers(file.source, file.matched, file.table)
    try:
        found = features(layers, file.table, banks.get(file.table.base))
    except FloatingPointError:
        return FormatError(f"{file.source.label}: its values are too large to be multiplied; train it again")
    rank = max(layer.rank for layer in layers.values())
    return _encoded(file, tuple(layers), rank, identity, found)


def _encoded(
    file: _Open, places: Sequence[int], rank: int, identity: str, found: Features
) -> Encoded | LoracompError:
    if not bool(found.present.any()):
        return FormatError(f"{file.source.label}: changes nothing, all its updates are zero; train it again")
    return Encoded(_facts(file, places, rank, identity, found), found)


def encode_adapter(adapter: Adapter, bank: ProbeBank | None = None) -> Features:
    """The features of an adapter at hand; raises UnknownNameError where its base is none of the known."""
    table = site_table(adapter.base)
    layers = {table.index[path]: layer for path, layer in adapter.layers.items() if path in table.index}
    return features(layers, table, bank if bank and bank.base == adapter.base else None)


def _facts(file: _Open, places: Sequence[int], rank: int, identity: str, found: Features) -> Facts:
    source, matched, table = file.source, file.matched, file.table
    said = source.metadata
    dora = any("magnitude" in item.keys for item in matched.found)
    trigger = said.get("modelspec.trigger_phrase", "")[:_LONGEST]
    words = " ".join([*(said.get(key, "")[:_LONGEST] for key in _TEXT_KEYS), trigger])
    return Facts(
        id=identity,
        path=os.fspath(Path(source.path).absolute()),
        name=Path(source.path).stem,
        base=table.base,
        licence=printable(said.get("modelspec.license", "")),
        words=printable(words, _LONGEST),
        trigger=printable(trigger, _LONGEST),
        kind=",".join(sorted({item.algebra for item in matched.found})),
        dialect=matched.dialect,
        rank=rank,
        sites=int(found.present.sum()),
        groups=",".join(sorted({table.sites[place].group for place in places})),
        bytes=source.header.size,
        norm=float(found.whole.norm()),
        complete=not matched.unmatched and not dora,
        delta=canonical_hash(tuple(found.whole[:64].tolist())),
    )
