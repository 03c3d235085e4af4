"""The embedded index: a LanceDB table in a folder, versioned, with atomic commits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from loracomp.errors import FormatError, ResourceError, UsageError
from loracomp.retrieval.filters import (
    COLUMNS,
    EVERYTHING,
    All,
    Compare,
    Either,
    Filter,
    Not,
    Value,
    both,
    compare,
)
from loracomp.retrieval.index import FLAGS, SPACES, Hit, Row
from loracomp.retrieval.rows import arrow, from_arrow, plain_columns, read_snapshot, schema, to_arrow

TABLE = "adapters"
INDEXED_FROM = 20_000
# Rows left by a filter up to which their vectors are simply compared: exact, and faster than a search.
SCANNED_UP_TO = 400
# More of them make the engine cluster in stages, which left 38 of a thousand where vectors come in clumps.
_PARTITIONS = 256
# Partitions searched, by the share of rows that the filter keeps: its few rows lie further apart.
_PROBES = ((0.1, 8), (0.01, 12), (0.0, 32))
_REFINED = 4
# All that a hit shows as one value: reading a column costs three milliseconds, whatever it holds.
_PACKED = "packed"
_BITMAPS = ("base", "licence", "heard", "learned", "complete", "quarantine", "encoder")
_TREES = ("id", "rank", "norm", "added", "bytes")
_BATCH = 4096


class LanceIndex:
    """See :class:`~loracomp.retrieval.index.AdapterIndex`.

    Args:
        folder: Folder of the database; made where it does not exist.

    Raises:
        ResourceError: LanceDB is missing.
        FormatError: The folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise ResourceError(
                f"the index needs lancedb ({error}); pip install 'loracomp[index]'"
            ) from error
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = lancedb.connect(str(folder))
            self._table = self._opened() or self._created()
        except (OSError, ValueError, RuntimeError) as error:
            line = str(error).strip().splitlines()[0]
            raise FormatError(f"{folder}: cannot be opened as an index ({line}); build it anew") from error
        if set(self._table.schema.names) != set(_schema().names):
            raise FormatError(
                f"{folder}: rows of another version; delete this folder and build the index again, "
                "which keeps all that was encoded and drawn"
            )
        self._indexed, self._rows_there = self._vector_indices(), self._table.count_rows()

    def _opened(self) -> Any:
        """The table; None where there is none, or one whose making was cut off before its first commit."""
        try:
            return self._db.open_table(TABLE)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise

    def _created(self) -> Any:
        place = self._folder / f"{TABLE}.lance"
        if place.is_dir() and not any(place.glob("_versions/*.manifest")):
            return self._db.create_table(TABLE, schema=_schema(), mode="overwrite")
        # A process that came first may have made it between the look and now.
        return self._db.create_table(TABLE, schema=_schema(), exist_ok=True)

    def upsert(self, rows: Iterable[Row]) -> int:
        """Adds or replaces rows; of rows with one id the last counts."""
        table = _packed(to_arrow({str(row["id"]): row for row in rows}.values()))
        if len(table):
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            # Vectors are checked by now; absent ones stay null.
            merge.execute(table, on_bad_vectors="null")
        return self._version()

    def delete(self, what: Sequence[str] | Filter) -> int:
        """Removes rows by id or filter."""
        if not isinstance(what, (Compare, All, Either, Not)):
            if not what:
                return self._version()
            what = Compare("id", "in", tuple(what))
        self._table.delete(sql(what))
        return self._version()

    def search(
        self,
        space: str,
        vector: Sequence[float],
        k: int,
        where: Filter = EVERYTHING,
        exact: bool = False,
        version: int | None = None,
    ) -> list[Hit]:
        """The nearest rows; compared one by one where few pass the filter, else by the vector index."""
        import numpy as np

        query = np.asarray(vector, np.float32)
        if query.shape != (SPACES[space],):
            raise ValueError(f"a vector of {query.shape} in the space {space}")
        table = self._at(version)
        flag = FLAGS[space]
        wanted = both(where, compare(flag, "=", True) if flag else None)
        condition = sql(wanted) if wanted != EVERYTHING else None
        unit = query / max(float(np.linalg.norm(query)), 1e-12)
        search = table.search(unit, vector_column_name=f"v_{space}").distance_type("l2").limit(k)
        search = search.select([_PACKED, "_distance"])
        if condition:
            search = search.where(condition, prefilter=True)
        probes = 0
        if f"v_{space}" in self._indexed and not exact:
            probes = self._probes(table, condition) if where != EVERYTHING else _PROBES[0][1]
        found = self._near(search, probes) if probes else []
        if len(found) < k:
            found = search.bypass_vector_index().to_arrow().to_pylist()
        current = int(table.version)  # half a millisecond each time it is asked for
        hits = [_hit(row, current) for row in found]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))

    def _near(self, search: Any, probes: int) -> list[dict[str, Any]]:
        """Rows by the vector index; without an upper limit it searches all partitions."""
        limited = search.minimum_nprobes(probes).maximum_nprobes(probes).refine_factor(_REFINED)
        return list(limited.to_arrow().to_pylist())

    def _probes(self, table: Any, condition: str | None) -> int:
        """Partitions to search; 0 where the rows that are left are better compared one by one."""
        left = table.count_rows(condition)
        if left <= SCANNED_UP_TO:
            return 0
        return next(probes for share, probes in _PROBES if left >= share * self._rows_there)

    def get(self, ids: Sequence[str]) -> list[Row]:
        """Rows by id, with probes and vectors."""
        if not ids:
            return []
        found = from_arrow(self._rows(Compare("id", "in", tuple(ids)), schema().names), vectors=True)
        by_id = {row["id"]: row for row in found}
        return [by_id[key] for key in ids if key in by_id]

    def scan(self, where: Filter = EVERYTHING, columns: Sequence[str] = ()) -> Iterator[Row]:
        """Rows in the order of their ids."""
        wanted = list(columns or plain_columns())
        ids = arrow().Table.to_pylist(self._rows(where, ["id"]))
        order = sorted(row["id"] for row in ids)
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            near = Compare("id", "in", tuple(part)) if len(order) > _BATCH else where
            rows = self._rows(near, sorted({"id", *wanted})).to_pylist()
            for row in sorted(rows, key=lambda row: row["id"]):
                yield {name: row[name] for name in wanted}

    def _rows(self, where: Filter, columns: Sequence[str]) -> Any:
        query = self._table.search().select(list(columns))
        if where != EVERYTHING:
            query = query.where(sql(where))
        return query.limit(self._table.count_rows() + 1).to_arrow()

    def stats(self) -> dict[str, Any]:
        """Engine, version, rows and indexed columns."""
        indexed = sorted(column for index in self._table.list_indices() for column in index.columns)
        return {
            "engine": "lance",
            "version": self._version(),
            "rows": self._table.count_rows(),
            "indexed": indexed,
        }

    def optimize(self) -> None:
        """Compacts, indexes columns, and from 20,000 rows on the vectors too."""
        rows = self._table.count_rows()
        if not rows:
            return
        there = {column for index in self._table.list_indices() for column in index.columns}
        for kind, columns in (("BITMAP", _BITMAPS), ("BTREE", _TREES)):
            for column in columns:
                if column not in there:
                    self._table.create_scalar_index(column, index_type=kind)
        if rows >= INDEXED_FROM:
            for space in SPACES:
                there_are = self._table.count_rows(f"v_{space} IS NOT NULL")
                if f"v_{space}" not in there and there_are >= INDEXED_FROM:
                    self._index_vectors(space, there_are)
        self._table.optimize()
        self._indexed, self._rows_there = self._vector_indices(), self._table.count_rows()

    def _index_vectors(self, space: str, rows: int) -> None:
        self._table.create_index(
            metric="l2",
            vector_column_name=f"v_{space}",
            index_type="IVF_SQ",
            num_partitions=min(max(int(rows**0.5), 16), _PARTITIONS),
        )

    def _vector_indices(self) -> set[str]:
        columns = {column for index in self._table.list_indices() for column in index.columns}
        return {column for column in columns if column.startswith("v_")}

    def snapshot(self, target: Path) -> None:
        """All rows as one Parquet file."""
        import pyarrow.parquet as parquet

        parquet.write_table(self._table.to_arrow().drop_columns([_PACKED]).sort_by("id"), target)

    def restore(self, source: Path) -> int:
        """Replaces all rows by a snapshot's in one commit."""
        import pyarrow.parquet as parquet

        table = _packed(read_snapshot(parquet, source))
        self._table.add(table, mode="overwrite", on_bad_vectors="null")
        self._indexed, self._rows_there = self._vector_indices(), self._table.count_rows()
        return self._version()

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _version(self) -> int:
        return int(self._table.version)

    def _at(self, version: int | None) -> Any:
        if version is None:
            return self._table
        table = self._db.open_table(TABLE)
        try:
            table.checkout(version)
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"{self._folder}: has no version {version}; it is at {self._version()}"
            ) from error
        return table


def _schema() -> Any:
    return schema().append(arrow().field(_PACKED, arrow().string(), nullable=False))


def _packed(table: Any) -> Any:
    """Rows with their plain columns once more as one text."""
    pa = arrow()
    texts = [json.dumps(row) for row in table.select(list(plain_columns())).to_pylist()]
    return table.append_column(_schema().field(_PACKED), pa.array(texts, pa.string()))


def _hit(found: dict[str, Any], version: int) -> Hit:
    row = json.loads(found[_PACKED])
    return Hit(row["id"], 1 - float(found["_distance"]) / 2, version, row)


def sql(where: Filter) -> str:
    """A filter in DataFusion's SQL; columns are known names and values literals."""
    if isinstance(where, (All, Either)):
        word, none = (" AND ", "true") if isinstance(where, All) else (" OR ", "false")
        return f"({word.join(map(sql, where.parts))})" if where.parts else none
    if isinstance(where, Not):
        return f"(NOT {sql(where.part)})"
    column = f"`{where.column}`"
    if where.column not in COLUMNS:
        raise ValueError(f"no such column: {where.column}")
    if where.operator == "contains":
        return f"(strpos(lower({column}), lower({_literal(where.value)})) > 0)"
    if isinstance(where.value, tuple):
        return f"({column} IN ({', '.join(map(_literal, where.value))}))"
    return f"({column} {where.operator} {_literal(where.value)})"


def _literal(value: Value | tuple[Value, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"
