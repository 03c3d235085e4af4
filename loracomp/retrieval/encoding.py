"""A LoRA file as a row of the index: facts from its header, features from its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loracomp.adapter import Adapter
from loracomp.errors import FormatError
from loracomp.formats.gate import DEFAULT_LIMITS, Limits, printable
from loracomp.formats.matching import Match, match
from loracomp.formats.sketches import canonical_hash
from loracomp.formats.source import Source
from loracomp.lowrank import LowRank
from loracomp.retrieval.bank import ProbeBank
from loracomp.retrieval.features import Features, features
from loracomp.retrieval.layers import check_values, read_layers
from loracomp.retrieval.sites import site_table

_LONGEST = 2000
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
    with Source(path, limits) as source:
        matched = match(source, base)
        table = site_table(matched.place.base)
        layers, identity = read_layers(source, matched, table)
        try:
            found = features(layers, table, (banks or {}).get(table.base))
        except FloatingPointError:
            check_values(source, matched)
            raise FormatError(
                f"{source.label}: its values are too large to be multiplied; train it again"
            ) from None
        if not bool(found.present.any()):
            raise FormatError(f"{source.label}: changes nothing, all its updates are zero; train it again")
        return Encoded(_facts(source, matched, layers, identity, found), found)


def encode_adapter(adapter: Adapter, bank: ProbeBank | None = None) -> Features:
    """The features of an adapter at hand; raises UnknownNameError where its base is none of the known."""
    table = site_table(adapter.base)
    layers = {table.index[path]: layer for path, layer in adapter.layers.items() if path in table.index}
    return features(layers, table, bank if bank and bank.base == adapter.base else None)


def _facts(
    source: Source, matched: Match, layers: dict[int, LowRank], identity: str, found: Features
) -> Facts:
    said, table = source.metadata, site_table(matched.place.base)
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
        rank=max(layer.rank for layer in layers.values()),
        sites=int(found.present.sum()),
        groups=",".join(sorted({table.sites[place].group for place in layers})),
        bytes=source.header.size,
        norm=float(found.whole.norm()),
        complete=not matched.unmatched and not dora,
        delta=canonical_hash(tuple(found.whole[:64].tolist())),
    )
