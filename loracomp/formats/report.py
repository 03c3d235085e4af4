"""What is in a LoRA file: :func:`inspect` reads it without refusing what :func:`load` would refuse."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, prod
from typing import Any

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.formats.gate import DEFAULT_LIMITS, Limits, printable
from loracomp.formats.hashing import source_hashes
from loracomp.formats.health import norm, outliers
from loracomp.formats.matching import Found, Match, match
from loracomp.formats.native import Table
from loracomp.formats.pieces import split
from loracomp.formats.reading import unusable, update
from loracomp.formats.scales import Stated, stated
from loracomp.formats.source import Source


@dataclass(frozen=True)
class Row:
    """One layer that a file changes.

    Attributes:
        path: Module path in the base.
        rank: Number of rank-one terms.
        alpha: Network alpha; the rank where the file states none.
        scale: alpha / rank, the factor that consumers multiply up · down with.
        shape: Shape of the layer's weight.
        dtype: Type of the stored factors.
        norm: Frobenius norm of ΔW; NaN where the values are not finite.
        algebra: How the update is written (``lora``, …).
    """

    path: str
    rank: int
    alpha: float
    scale: float
    shape: tuple[int, ...]
    dtype: str
    norm: float
    algebra: str


@dataclass(frozen=True)
class Report:
    """What a file is, how it fits, and how healthy it is.

    Attributes:
        file: The path as it was given.
        dialect: Commonest dialect of its names.
        base: The base that it fits best.
        confidence: How sure that is, in [0, 1].
        evidence: What the guess rests on, in sentences.
        rows: The layers it changes.
        unmatched: Why a tensor has no place, by tensor name.
        damaged: What makes a module unusable (NaN, infinity), by module name.
        zero: Paths of layers whose update is zero.
        outliers: Robust z-score of the log norm by path, for layers that stand out.
        trigger_words: Words that call the adapter.
        metadata: The header's strings.
        hashes: ``sha256``, ``autov2``, ``autov3``, ``sshs_model_hash``.
    """

    file: str
    dialect: str
    base: str
    confidence: float
    evidence: tuple[str, ...]
    rows: tuple[Row, ...]
    unmatched: Mapping[str, str]
    damaged: Mapping[str, str]
    zero: tuple[str, ...]
    outliers: Mapping[str, float]
    trigger_words: tuple[str, ...]
    metadata: Mapping[str, str]
    hashes: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether every tensor has a place and is usable."""
        return not self.unmatched and not self.damaged

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values (NaN becomes None)."""
        rows = [{**asdict(row), "norm": row.norm if isfinite(row.norm) else None} for row in self.rows]
        return {**asdict(self), "rows": rows, "complete": self.complete}


def inspect(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    modules: Table | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """The report on a LoRA file; NaN values and tensors without a place are reported, not refused.

    Args:
        path: A ``.safetensors`` file.
        base: The base it should be for; recognised where None.
        modules: Weight shapes by module path of a pipeline that is none of the known bases.
        limits: What the gate for untrusted files lets through.

    Raises:
        FormatError: The file is missing, damaged, unsafe, no LoRA, or for no known base.
        BaseMismatchError: It was made for another base than ``base``.
    """
    with Source(path, limits) as source:
        matched = match(source, base, modules)
        says = stated(source.metadata, source.path)
        damaged: dict[str, str] = {}
        rows: list[Row] = []
        for item in matched.found:
            if bad := unusable(source, item):
                damaged[item.name] = bad
            else:
                rows += _rows(source, item, says)
        rows.sort(key=lambda row: row.path)
        adapter = Adapter({}, matched.place.base, metadata=source.metadata)
        return Report(
            file=os.fspath(path),
            dialect=matched.dialect,
            base=matched.place.base,
            confidence=round(matched.confidence, 4),
            evidence=evidence(source, matched),
            rows=tuple(rows),
            unmatched=dict(matched.unmatched),
            damaged=damaged,
            zero=tuple(row.path for row in rows if row.norm == 0),
            outliers=outliers({row.path: row.norm / prod(row.shape) ** 0.5 for row in rows}),
            trigger_words=adapter.trigger_words,
            metadata=dict(source.metadata),
            hashes=source_hashes(source),
        )


def _rows(source: Source, item: Found, says: Stated) -> list[Row]:
    whole = update(source, item, says)
    dtype = str(whole.up.dtype).removeprefix("torch.")
    return [
        Row(
            path=path,
            rank=layer.rank,
            alpha=float(layer.rank) if layer.alpha is None else layer.alpha,
            scale=layer.scale,
            shape=layer.weight_shape,
            dtype=dtype,
            norm=norm(layer),
            algebra=item.algebra,
        )
        for path, layer in split(whole, item.module).items()
    ]


def evidence(source: Source, matched: Match) -> tuple[str, ...]:
    """Sentences that say what the guess of the base rests on, and what speaks against it."""
    mine = matched.place.base
    lines = [f"{matched.scores[mine]:.0%} of its modules have {mine}'s names and shapes"]
    others = sorted(((s, n) for n, s in matched.scores.items() if n != mine and s > 0), reverse=True)
    lines += [f"{name} would fit {score:.0%}" for score, name in others[:2]]
    row = BASES.get(mine)
    claims = {
        "modelspec.architecture": f"{row.architecture}/lora" if row else "",
        "ss_base_model_version": row.kohya_version if row else "",
    }
    for key, expected in claims.items():
        if (claim := source.metadata.get(key)) is not None:
            agrees = "agrees" if claim == expected else f"disagrees (it would be {expected!r})"
            lines.append(f"the header's {key} is {printable(claim, 60)!r}, which {agrees}")
    return tuple(lines)
