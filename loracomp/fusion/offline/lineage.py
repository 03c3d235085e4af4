"""What a merged file says of its parents, so that whoever finds it can tell where it comes from.

``loracomp.lineage`` is a JSON object: ``operation`` (``merge`` or ``fold``), ``method``, ``options``,
``rank``, ``seed``, ``loracomp`` (version) and ``parents``, each with ``name``, ``hash`` (canonical hash of
its update, the same in every dialect, as ``loracomp doctor`` prints it), ``weight`` and, where it is a merge
itself, its own ``lineage``.

``loracomp.parent_manifests`` is a JSON list of ``{"parent": hash, "entries": {key: value}}``: the header
strings of each parent whose keys begin with ``loracomp.watermark``, unchanged, and the entries that the
parents had in the same list. A signature in them covers the parent's tensors, not the merged ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loracomp import __version__
from loracomp.adapter import Acceleration
from loracomp.formats.sketches import canonical_hash, fingerprint, sketches
from loracomp.fusion.offline.parents import Family
from loracomp.lowrank import LowRank

LINEAGE = "loracomp.lineage"
MANIFESTS = "loracomp.parent_manifests"
WATERMARK = "loracomp.watermark"
TRIGGERS = "modelspec.trigger_phrase"


class Identities:
    """Collects the canonical hashes of the parents while their layers go by."""

    def __init__(self, count: int) -> None:
        self._sketches: list[list[tuple[str, tuple[float, ...]]]] = [[] for _ in range(count)]

    def add(self, path: str, updates: Sequence[LowRank]) -> None:
        """Takes in one layer of each parent (rank 0 where a parent has none)."""
        there = [index for index, update in enumerate(updates) if update.rank]
        for index, values in zip(there, sketches(path, [updates[index] for index in there]), strict=True):
            self._sketches[index].append((path, values))

    def hashes(self) -> list[str]:
        """Sixteen hexadecimal digits per parent."""
        return [canonical_hash(fingerprint(found)) for found in self._sketches]


def strings(
    family: Family, hashes: Sequence[str], operation: str, facts: Mapping[str, Any]
) -> dict[str, str]:
    """Header strings of a merge.

    Args:
        family: Its parents and weights.
        hashes: The parents' canonical hashes.
        operation: ``merge`` or ``fold``.
        facts: What else belongs into the lineage (method, options, rank, seed).
    """
    named = list(zip(family.parents, family.weights, hashes, strict=True))
    parents = [
        {"name": parent.name, "hash": digest, "weight": weight, **_own(parent.metadata)}
        for parent, weight, digest in named
    ]
    lineage = {"operation": operation, "loracomp": __version__, "parents": parents, **facts}
    out = {LINEAGE: json.dumps(lineage, sort_keys=True)}
    if manifests := [entry for parent, _, digest in named for entry in _manifests(parent.metadata, digest)]:
        out[MANIFESTS] = json.dumps(manifests, sort_keys=True)
    if words := _words(parent.metadata for parent in family.parents):
        out[TRIGGERS] = words
    kept = [
        parent.metadata[Acceleration.KEY] for parent in family.parents if Acceleration.KEY in parent.metadata
    ]
    return out | ({Acceleration.KEY: kept[0]} if kept else {})


def _own(metadata: Mapping[str, str]) -> dict[str, Any]:
    """A parent's own lineage; what is no JSON object there is left out, since headers come from anywhere."""
    value = _json(metadata.get(LINEAGE, ""))
    return {"lineage": value} if isinstance(value, dict) else {}


def _manifests(metadata: Mapping[str, str], digest: str) -> list[dict[str, Any]]:
    own = {key: value for key, value in metadata.items() if key.startswith(WATERMARK)}
    earlier = _json(metadata.get(MANIFESTS, ""))
    older = [entry for entry in earlier if isinstance(entry, dict)] if isinstance(earlier, list) else []
    return ([{"parent": digest, "entries": own}] if own else []) + older


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _words(headers: Iterable[Mapping[str, str]]) -> str:
    """Trigger words of all parents, each once, in order."""
    words = (word.strip() for header in headers for word in header.get(TRIGGERS, "").split(","))
    return ", ".join(dict.fromkeys(word for word in words if word))
