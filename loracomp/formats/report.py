"""What is in a LoRA file: :func:`inspect` reads it without refusing what :func:`load` would refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from math import isfinite, prod
from typing import Any

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.formats.gate import DEFAULT_LIMITS, Limits, printable
from loracomp.formats.hashing import source_hashes
from loracomp.formats.health import outliers
from loracomp.formats.matching import Found, Match, match
from loracomp.formats.matrices import Matrix
from loracomp.formats.measure import Measured, measure, measure_all
from loracomp.formats.native import Module, Table
from loracomp.formats.scales import Stated, stated
from loracomp.formats.sketches import Fingerprint, canonical_hash, fingerprint
from loracomp.formats.source import Source
from loracomp.formats.updates import NEEDS_WEIGHTS, UnusableError, Weights, read
from loracomp.lowrank import LowRank


@dataclass(frozen=True, slots=True)
class Row:
    """One layer that a file changes.

    Attributes:
        path: Module path in the base.
        rank: Number of rank-one terms, or a bound of it.
        alpha: Network alpha; the rank where the file states none.
        scale: alpha / rank, the factor that consumers multiply up · down with.
        shape: Shape of the layer's weight.
        dtype: Type of the stored factors.
        norm: Frobenius norm of ΔW.
        alpha_from: Where alpha is stated: ``tensor``, ``header`` or ``nowhere`` (then it is the rank).
        algebra: How the update is written (``lora``, ``loha``, ``lokr``, ``diff``, ``dora``).
    """

    path: str
    rank: int
    alpha: float
    scale: float
    shape: tuple[int, ...]
    dtype: str
    norm: float
    alpha_from: str
    algebra: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Rows that come from other processes share their texts and shapes: files have thousands of rows."""
        return _row_of, tuple(getattr(self, item.name) for item in fields(self))


def _row_of(*values: Any) -> Row:
    return Row(*map(_shared, values))


@lru_cache(maxsize=1 << 14)
def _known(value: Any) -> Any:
    return value


def _shared(value: Any) -> Any:
    """An equal text or shape that is there already; numbers as they are."""
    return _known(value) if isinstance(value, (str, tuple)) else value


@dataclass(frozen=True)
class Report:
    """What a file is, how it fits, and how healthy it is.

    Attributes:
        file: The path as it was given.
        dialect: Commonest dialect of its names.
        style: How it writes its tensors' suffixes, commonly: ``kohya``, ``peft``, ``old`` or ``lycoris``.
        base: The base that it fits best.
        confidence: How sure that is, in [0, 1].
        evidence: What the guess rests on, in sentences.
        rows: The layers it changes.
        resembles: The family of models it looks made for and why, where that is none of the bases.
        unmatched: Why a tensor has no place, by tensor name.
        ignored: Why a tensor without a place does no harm, by tensor name.
        damaged: What makes a module unusable (NaN, infinity), by module name.
        zero: Paths of layers whose update is zero.
        outliers: Robust z-score of the log norm by path, for layers that stand out.
        trigger_words: Words that call the adapter.
        metadata: The header's strings.
        hashes: ``autov3``, ``sshs_model_hash`` and, where asked for, ``sha256`` and ``autov2``.
        canonical_hash: Name of the update itself, the same in every dialect, gauge and dtype.
        fingerprint: 64 numbers that tell duplicates, see :mod:`loracomp.formats.sketches`.
    """

    file: str
    dialect: str
    style: str
    base: str
    confidence: float
    evidence: tuple[str, ...]
    resembles: str
    rows: tuple[Row, ...]
    unmatched: Mapping[str, str]
    ignored: Mapping[str, str]
    damaged: Mapping[str, str]
    zero: tuple[str, ...]
    outliers: Mapping[str, float]
    trigger_words: tuple[str, ...]
    metadata: Mapping[str, str]
    hashes: Mapping[str, str]
    canonical_hash: str
    fingerprint: Fingerprint = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether every tensor has a place and is usable."""
        return not self.unmatched and not self.damaged

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, without the fingerprint."""
        values = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("fingerprint", "rows")
        }
        return {**values, "rows": [asdict(row) for row in self.rows], "complete": self.complete}


def inspect(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    modules: Table | None = None,
    weights: Weights | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """The report on a LoRA file; NaN values and tensors without a place are reported, not refused.

    Args:
        path: A ``.safetensors`` file.
        base: The base it should be for; recognised where None.
        modules: Weight shapes by module path of a pipeline that is none of the known bases.
        weights: The base's weight by module path, which DoRA needs.
        limits: What the gate for untrusted files lets through.

    Raises:
        FormatError: The file is missing, damaged, unsafe, no LoRA, or for no known base.
        BaseMismatchError: It was made for another base than ``base``.
    """
    with Source(path, limits) as source:
        matched = match(source, base, modules)
        return examine(source, matched, weights)


def examine(source: Source, matched: Match, weights: Weights | None = None, *, whole: bool = True) -> Report:
    """The report on an open file that fits a base; ``whole`` hashes the header's bytes too (AutoV2)."""
    says = stated(source.metadata, source.path)
    damaged: dict[str, str] = {}
    unmatched = dict(matched.unmatched)
    rows: list[Row] = []
    sketches: list[tuple[str, tuple[float, ...]]] = []
    source.start_hash()
    for item, measures in _measures(source, matched, says, weights, damaged):
        if "magnitude" in item.keys and weights is None:
            unmatched[item.keys["magnitude"]] = NEEDS_WEIGHTS
        for measured in measures:
            rows.append(_row(source, item, measured, matched, says))
            sketches.append((measured.path, measured.sketch))
    rows.sort(key=lambda row: row.path)
    print_ = fingerprint(sketches)
    adapter = Adapter({}, matched.place.base, metadata=source.metadata)
    return Report(
        file=os.fspath(source.path),
        dialect=matched.dialect,
        style=matched.style,
        base=matched.place.base,
        confidence=round(matched.confidence, 4),
        evidence=evidence(source, matched),
        resembles=matched.resembles,
        rows=tuple(rows),
        unmatched=unmatched,
        ignored=dict(matched.ignored),
        damaged=damaged,
        zero=tuple(row.path for row in rows if row.norm == 0),
        outliers=outliers({row.path: row.norm / prod(row.shape) ** 0.5 for row in rows}),
        trigger_words=adapter.trigger_words,
        metadata=dict(source.metadata),
        hashes=source_hashes(source, whole=whole),
        canonical_hash=canonical_hash(print_),
        fingerprint=print_,
    )


def _place(source: Source, item: Found) -> int:
    """Where a module's factors begin, so that the file is read once and from front to back."""
    return min(source.tensors[key].begin for role, key in item.keys.items() if role != "alpha")


def _measures(
    source: Source, matched: Match, says: Stated, weights: Weights | None, damaged: dict[str, str]
) -> Iterator[tuple[Found, list[Measured]]]:
    """The layers of each module, measured; why a module cannot be is put into ``damaged``.

    Values are not checked one by one: what is not finite shows in the norm or the sketch, and then, or
    where the norm is zero, the module is read again and measured in float64.
    """

    def updates() -> Iterator[tuple[Found, Module, LowRank | Matrix]]:
        for item in sorted(matched.found, key=lambda found: _place(source, found)):
            try:
                yield item, item.module, read(source, item, says, weights, check=False)
            except UnusableError as error:
                damaged[item.name] = str(error)

    for item, measures in measure_all(updates()):
        if all(part.norm > 0 and _finite(part) for part in measures):
            yield item, measures
            continue
        try:
            again = measure(read(source, item, says, weights), item.module)
            if not all(map(_finite, again)):
                raise UnusableError(
                    f"the module {printable(item.name)!r} has values too large to be multiplied"
                )
        except UnusableError as error:
            damaged[item.name] = str(error)
        else:
            yield item, again


def _finite(measured: Measured) -> bool:
    return isfinite(measured.norm) and all(map(isfinite, measured.sketch))


def _row(source: Source, item: Found, measured: Measured, matched: Match, says: Stated) -> Row:
    dtypes = {role: source.tensors[key].dtype for role, key in item.keys.items()}
    stored = next(dtype for role, dtype in dtypes.items() if role not in ("alpha", "magnitude"))
    return Row(
        path=measured.path,
        rank=measured.rank,
        alpha=measured.scale * measured.rank,
        scale=measured.scale,
        shape=matched.place.table[measured.path],
        dtype=str(stored).removeprefix("torch."),
        norm=measured.norm,
        alpha_from=_alpha_from(item, measured, says),
        algebra="dora" if "magnitude" in item.keys else item.algebra,
    )


def _alpha_from(item: Found, measured: Measured, says: Stated) -> str:
    if "alpha" in item.keys:
        return "tensor"
    return "header" if says.alpha(measured.path, measured.rank) is not None else "nowhere"


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
