"""The index on a server: one PostgreSQL table with pgvector 0.8 or later, in half precision.

Filters and vectors change in one transaction, so that a quarantined adapter is never found. Scans of the
graph go on until enough rows pass the filter (``hnsw.iterative_scan``), which pgvector leaves off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from loracomp.errors import FormatError, ResourceError, UsageError
from loracomp.retrieval.filters import COLUMNS, EVERYTHING, All, Compare, Either, Filter, Not, both, compare
from loracomp.retrieval.index import FLAGS, SPACES, VALUES, Hit, Row
from loracomp.retrieval.rows import from_arrow, plain_columns, read_snapshot, schema, to_arrow

INDEXED_FROM = 20_000
_TYPES = {str: "text", int: "bigint", float: "double precision", bool: "boolean"}
_TREES = ("base", "licence", "rank", "quarantine", "norm", "added")
_BATCH = 512


class PostgresIndex:
    """See :class:`~loracomp.retrieval.index.AdapterIndex`; without history, only the current version answers.

    Args:
        address: ``postgresql://user@host/database``; the table ``loracomp_adapters`` is made where missing.
        candidates: Rows that a scan of the graph keeps in mind (``hnsw.ef_search``).

    Raises:
        ResourceError: psycopg is missing, the server is out of reach, or it has no pgvector 0.8.
        FormatError: The table is of another version.
    """

    def __init__(self, address: str, candidates: int = 200) -> None:
        try:
            import psycopg
            from pgvector.psycopg import register_vector
        except ImportError as error:
            raise ResourceError(
                f"a PostgreSQL index needs psycopg and pgvector ({error}); pip install 'loracomp[server]'"
            ) from error
        self._candidates = candidates
        try:
            self._link: Any = psycopg.connect(address, autocommit=True)
            with self._link.transaction():
                self._link.execute("SELECT pg_advisory_xact_lock(20250804)")
                self._link.execute("CREATE EXTENSION IF NOT EXISTS vector")
                self._link.execute(_TABLE)
                self._link.execute(_VERSION)
                self._link.execute("INSERT INTO loracomp_version SELECT true, 1 ON CONFLICT DO NOTHING")
            register_vector(self._link)
            self._checked()
        except psycopg.Error as error:
            line = str(error).strip().splitlines()[0]
            raise ResourceError(
                f"PostgreSQL cannot be used as an index ({line}); check the address"
            ) from error

    def _checked(self) -> None:
        (installed,) = self._link.execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        if tuple(map(int, installed.split(".")[:2])) < (0, 8):
            raise ResourceError(
                f"pgvector {installed} is too old, 0.8 is needed; ALTER EXTENSION vector UPDATE"
            )
        query = "SELECT column_name FROM information_schema.columns WHERE table_name = 'loracomp_adapters'"
        found = {name for (name,) in self._link.execute(query).fetchall()}
        if found != set(schema().names):
            raise FormatError("the table loracomp_adapters is of another version; drop it and build it anew")

    def upsert(self, rows: Iterable[Row]) -> int:
        """Adds or replaces rows in one transaction; of rows with one id the last counts."""
        from pgvector import HalfVector

        held = {str(row["id"]): row for row in rows}
        names = schema().names
        with self._link.transaction(), self._link.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE incoming (LIKE loracomp_adapters) ON COMMIT DROP")
            with cursor.copy(f"COPY incoming ({_quoted(names)}) FROM STDIN WITH (FORMAT BINARY)") as copy:
                copy.set_types([_copied(name) for name in names])
                for row in held.values():
                    copy.write_row([_value(row, name, HalfVector) for name in names])
            changes = ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in names if name != "id")
            cursor.execute(
                f"INSERT INTO loracomp_adapters ({_quoted(names)}) SELECT {_quoted(names)} FROM incoming "
                f"ON CONFLICT (id) DO UPDATE SET {changes}"
            )
            return self._bumped(cursor, bool(held))

    def delete(self, what: Sequence[str] | Filter) -> int:
        """Removes rows by id or filter."""
        if not isinstance(what, (Compare, All, Either, Not)):
            if not what:
                return self._version()
            what = Compare("id", "in", tuple(what))
        condition, values = compiled(what)
        with self._link.transaction(), self._link.cursor() as cursor:
            cursor.execute(f"DELETE FROM loracomp_adapters WHERE {condition}", values)
            return self._bumped(cursor, True)

    def _bumped(self, cursor: Any, changed: bool) -> int:
        cursor.execute(
            "UPDATE loracomp_version SET version = version + %s RETURNING version", (int(changed),)
        )
        return int(cursor.fetchone()[0])

    def search(
        self,
        space: str,
        vector: Sequence[float],
        k: int,
        where: Filter = EVERYTHING,
        exact: bool = False,
        version: int | None = None,
    ) -> list[Hit]:
        """The nearest rows that pass, by a scan of the graph that goes on until there are enough."""
        import numpy as np
        from pgvector import HalfVector

        if len(vector) != SPACES[space]:
            raise ValueError(f"a vector of {len(vector)} in the space {space}")
        current = self._version()
        if version not in (None, current):
            raise UsageError(f"PostgreSQL keeps no history: it is at version {current}, not {version}")
        flag = FLAGS[space]
        condition, values = compiled(both(where, compare(flag, "=", True) if flag else None))
        query = HalfVector(np.asarray(vector, np.float32))
        columns = _quoted(plain_columns())
        text = f'SELECT {columns}, 1 - ("v_{space}" <=> %s) FROM loracomp_adapters WHERE {condition} '
        with self._link.transaction(), self._link.cursor() as cursor:
            self._tune(cursor, exact, k)
            cursor.execute(text + f'ORDER BY "v_{space}" <=> %s LIMIT %s', (query, *values, query, k))
            rows = cursor.fetchall()
        hits = [Hit(r[0], float(r[-1]), current, dict(zip(plain_columns(), r, strict=False))) for r in rows]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))

    def _tune(self, cursor: Any, exact: bool, k: int) -> None:
        cursor.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        cursor.execute("SET LOCAL hnsw.max_scan_tuples = 1000000")
        cursor.execute(f"SET LOCAL hnsw.ef_search = {min(max(self._candidates, k), 1000)}")
        if exact:
            cursor.execute("SET LOCAL enable_indexscan = off")

    def get(self, ids: Sequence[str]) -> list[Row]:
        """Rows by id, with probes and vectors."""
        names = schema().names
        text = f"SELECT {_quoted(names)} FROM loracomp_adapters WHERE id = ANY(%s)"
        found = [_row(names, row) for row in self._link.execute(text, (list(ids),)).fetchall()]
        by_id = {row["id"]: row for row in found}
        return [by_id[key] for key in ids if key in by_id]

    def scan(self, where: Filter = EVERYTHING, columns: Sequence[str] = ()) -> Iterator[Row]:
        """Rows in the order of their ids, fetched a few hundred at a time."""
        yield from self._streamed(where, tuple(columns or plain_columns()))

    def _streamed(self, where: Filter, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        condition, values = compiled(where)
        # The bytes' own order, whatever language the server sorts by.
        text = f'SELECT {_quoted(names)} FROM loracomp_adapters WHERE {condition} ORDER BY id COLLATE "C"'
        with self._link.transaction(), self._link.cursor(name="loracomp_scan") as cursor:
            cursor.itersize = _BATCH
            cursor.execute(text, values)
            for row in cursor:
                yield _row(names, row)

    def stats(self) -> dict[str, Any]:
        """Engine, version, rows and indices."""
        (rows,) = self._link.execute("SELECT count(*) FROM loracomp_adapters").fetchone()
        query = "SELECT indexname FROM pg_indexes WHERE tablename = 'loracomp_adapters' ORDER BY 1"
        indexed = [name for (name,) in self._link.execute(query).fetchall()]
        return {"engine": "postgres", "version": self._version(), "rows": rows, "indexed": indexed}

    def optimize(self) -> None:
        """Indexes columns, and from 20,000 rows on the vectors too."""
        for column in _TREES:
            name = f"loracomp_{column}"
            self._link.execute(f'CREATE INDEX IF NOT EXISTS {name} ON loracomp_adapters ("{column}")')
        (rows,) = self._link.execute("SELECT count(*) FROM loracomp_adapters").fetchone()
        if rows >= INDEXED_FROM:
            self._link.execute("SET maintenance_work_mem = '2GB'")
            for space in SPACES:
                only = f"WHERE {FLAGS[space]}" if FLAGS[space] else ""
                self._link.execute(
                    f"CREATE INDEX IF NOT EXISTS loracomp_v_{space} ON loracomp_adapters USING hnsw "
                    f'("v_{space}" halfvec_cosine_ops) WITH (m = 16, ef_construction = 100) {only}'
                )
        self._link.execute("VACUUM ANALYZE loracomp_adapters")

    def snapshot(self, target: Path) -> None:
        """All rows as one Parquet file."""
        import pyarrow.parquet as parquet

        with parquet.ParquetWriter(target, schema()) as writer:
            batch: list[Row] = []
            for row in self._streamed(EVERYTHING, schema().names):
                batch.append(row)
                if len(batch) == _BATCH:
                    writer.write_table(to_arrow(batch))
                    batch = []
            writer.write_table(to_arrow(batch))

    def restore(self, source: Path) -> int:
        """Replaces all rows by a snapshot's in one transaction."""
        import pyarrow.parquet as parquet

        rows = from_arrow(read_snapshot(parquet, source), vectors=True)
        with self._link.transaction():
            self._link.execute("DELETE FROM loracomp_adapters")
            return self.upsert(rows)

    def close(self) -> None:
        """Closes the connection."""
        self._link.close()

    def _version(self) -> int:
        return int(self._link.execute("SELECT version FROM loracomp_version").fetchone()[0])


def _column(name: str) -> str:
    if name.startswith("v_"):
        space = name.removeprefix("v_")
        return f'"{name}" halfvec({SPACES[space]})' + ("" if FLAGS[space] else " NOT NULL")
    if name == "probes":
        return '"probes" bytea NOT NULL'
    kind = "double precision" if name in VALUES else _TYPES[COLUMNS[name]]
    return f'"{name}" {kind} NOT NULL' + (" PRIMARY KEY" if name == "id" else "")


_NAMES = (*COLUMNS, *VALUES, "probes", *(f"v_{space}" for space in SPACES))
_TABLE = f"CREATE TABLE IF NOT EXISTS loracomp_adapters ({', '.join(map(_column, _NAMES))})"
_VERSION = (
    "CREATE TABLE IF NOT EXISTS loracomp_version "
    "(one boolean PRIMARY KEY CHECK (one), version bigint NOT NULL)"
)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _copied(name: str) -> str:
    """Type of a column in binary COPY."""
    if name.startswith("v_"):
        return "halfvec"
    if name == "probes":
        return "bytea"
    return {str: "text", int: "int8", float: "float8", bool: "bool"}[COLUMNS.get(name, float)]


def _value(row: Row, name: str, vector: Any) -> Any:
    if name.startswith("v_"):
        import numpy as np

        return None if row[name] is None else vector(np.asarray(row[name], np.float32))
    return row[name]


def _row(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """A row from the server, vectors as numpy arrays."""
    row: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if name.startswith("v_"):
            row[name] = None if value is None else value.to_numpy().astype("float32")
        else:
            row[name] = bytes(value) if name == "probes" else value
    return row


def compiled(where: Filter) -> tuple[str, list[Any]]:
    """A filter as a condition with placeholders, and their values; columns are known names."""
    if isinstance(where, (All, Either)):
        word, none = (" AND ", "true") if isinstance(where, All) else (" OR ", "false")
        parts = [compiled(part) for part in where.parts]
        text = f"({word.join(part for part, _ in parts)})" if parts else none
        return text, [value for _, values in parts for value in values]
    if isinstance(where, Not):
        text, values = compiled(where.part)
        return f"(NOT {text})", values
    if where.column not in COLUMNS:
        raise ValueError(f"no such column: {where.column}")
    if where.operator == "contains":
        return f'(strpos(lower("{where.column}"), lower(%s)) > 0)', [where.value]
    if isinstance(where.value, tuple):
        return f'("{where.column}" = ANY(%s))', [list(where.value)]
    collate = ' COLLATE "C"' if COLUMNS[where.column] is str and where.operator not in ("=", "!=") else ""
    return f'("{where.column}"{collate} {where.operator} %s)', [where.value]
