"""The index of adapters as a protocol: rows with several vectors each, filters, versions.

An index is never the source of truth: it can be made anew from the feature shards at any time
(:mod:`loracomp.retrieval.shards`). Engines register here and pass the same tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from loracomp.retrieval.filters import EVERYTHING, Filter

SPACES: Mapping[str, int] = {"update": 256, "hears": 512, "says": 256, "learned": 512}
"""Vector spaces and their widths. Rows without a vector of a space have None there and are never found."""

FLAGS: Mapping[str, str | None] = {"update": None, "hears": "heard", "says": "heard", "learned": "learned"}
"""Column that says whether a row has a vector of the space; None where all have."""

Row = Mapping[str, Any]
"""Columns of :data:`loracomp.retrieval.filters.COLUMNS`, :data:`VALUES`, a vector ``v_SPACE`` per space (unit
length, or None), and ``probes``, bytes for exact scores."""

VALUES = ("heard_mean", "heard_spread")
"""Numbers of a row that no filter names."""


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        id: Its key.
        score: Cosine in the space that was searched, in [-1, 1], or a score made of several.
        version: Version of the index that answered.
        row: Its columns, without vectors.
        explain: What the score is made of.
    """

    id: str
    score: float
    version: int
    row: Row
    explain: Mapping[str, float] = field(default_factory=dict)


class AdapterIndex(Protocol):
    """What every engine does; ResourceError where it is out of reach."""

    def upsert(self, rows: Iterable[Row]) -> int:
        """Adds rows or replaces those of the same id, all or none; the new version."""

    def delete(self, what: Sequence[str] | Filter) -> int:
        """Removes rows by id or by filter; the new version."""

    def search(
        self,
        space: str,
        vector: Sequence[float],
        k: int,
        where: Filter = EVERYTHING,
        exact: bool = False,
        version: int | None = None,
    ) -> list[Hit]:
        """The ``k`` rows of highest cosine that pass the filter, or all where fewer pass, best first."""

    def get(self, ids: Sequence[str]) -> list[Row]:
        """Rows by id with their probes, in the order asked for; unknown ids are left out."""

    def scan(self, where: Filter = EVERYTHING, columns: Sequence[str] = ()) -> Iterator[Row]:
        """Rows that pass, in the order of their ids; all columns but vectors and probes, or those named."""

    def stats(self) -> dict[str, Any]:
        """Engine, version, rows, and what is indexed how."""

    def optimize(self) -> None:
        """Brings the search structures up to date; results stay right without it, only slower."""

    def snapshot(self, target: Path) -> None:
        """Writes all rows as one Parquet file that :meth:`restore` of any engine reads."""

    def restore(self, source: Path) -> int:
        """Replaces all rows by those of a snapshot, all or none; the new version."""

    def close(self) -> None:
        """Lets go of files and connections."""


def open_index(place: str) -> AdapterIndex:
    """The index at a place: a folder, or a PostgreSQL address (``postgresql://…``).

    Raises:
        ResourceError: The engine's package is missing, or it cannot be reached.
    """
    if place.startswith(("postgresql://", "postgres://")):
        from loracomp.retrieval.postgres import PostgresIndex

        return PostgresIndex(place)
    from loracomp.retrieval.lance import LanceIndex

    return LanceIndex(Path(place))
