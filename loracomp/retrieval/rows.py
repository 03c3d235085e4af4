"""The table's schema as Arrow types, shared by the engines' snapshots and the embedded engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from loracomp.errors import FormatError, ResourceError
from loracomp.retrieval.filters import COLUMNS
from loracomp.retrieval.index import FLAGS, SPACES, VALUES, Row


def arrow() -> Any:
    """The pyarrow package; raises :class:`ResourceError` where it is missing."""
    try:
        import pyarrow
    except ImportError as error:
        raise ResourceError(f"the index needs pyarrow ({error}); pip install 'loracomp[index]'") from error
    return pyarrow


def schema() -> Any:
    """Arrow schema of a row."""
    pa = arrow()
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    fields = [pa.field(name, kinds[kind], nullable=False) for name, kind in COLUMNS.items()]
    fields += [pa.field(name, pa.float64(), nullable=False) for name in VALUES]
    fields += [pa.field("probes", pa.binary(), nullable=False)]
    vectors = {space: pa.list_(pa.float32(), width) for space, width in SPACES.items()}
    fields += [pa.field(f"v_{s}", kind, nullable=FLAGS[s] is not None) for s, kind in vectors.items()]
    return pa.schema(fields)


def plain_columns() -> tuple[str, ...]:
    """Columns that hits and scans carry: neither vectors nor probes."""
    return (*COLUMNS, *VALUES)


def to_arrow(rows: Iterable[Row]) -> Any:
    """An Arrow table of rows; raises ValueError for vectors of another width or that are not finite."""
    held = list(rows)
    shape = schema()
    columns = [
        _vectors(held, part.name) if part.name.startswith("v_") else _plain(held, part) for part in shape
    ]
    return arrow().Table.from_arrays(columns, schema=shape)


def _plain(rows: Sequence[Row], part: Any) -> Any:
    return arrow().array([row[part.name] for row in rows], part.type)


def _vectors(rows: Sequence[Row], name: str) -> Any:
    import numpy as np

    pa, space = arrow(), name.removeprefix("v_")
    values = np.zeros((len(rows), SPACES[space]), np.float32)
    missing = np.array([row[name] is None for row in rows], bool)
    for place, row in enumerate(rows):
        if not missing[place]:
            vector = np.asarray(row[name], np.float32)
            if vector.shape != (SPACES[space],):
                raise ValueError(f"a vector of the shape {vector.shape} in the space {space}")
            if not np.isfinite(vector).all():
                raise ValueError(f"a vector that is not finite in the space {space}")
            values[place] = vector
    flat = pa.array(values.reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, SPACES[space], mask=pa.array(missing))


def from_arrow(table: Any, vectors: bool = False) -> list[dict[str, Any]]:
    """Rows of an Arrow table; vectors, where wanted, as numpy arrays."""
    import numpy as np

    plain = [name for name in table.column_names if not name.startswith("v_")]
    rows: list[dict[str, Any]] = table.select([name for name in plain if name in _known()]).to_pylist()
    if vectors:
        for space in SPACES:
            for row, vector in zip(rows, table.column(f"v_{space}"), strict=True):
                there = vector.is_valid
                row[f"v_{space}"] = np.asarray(vector.values, np.float32) if there else None
    return rows


def _known() -> Sequence[str]:
    return (*COLUMNS, *VALUES, "probes")


def read_snapshot(parquet: Any, source: Path) -> Any:
    """The Arrow table of a snapshot; raises :class:`FormatError` for any other file."""
    try:
        return parquet.read_table(source).cast(schema())
    except (OSError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0]
        raise FormatError(f"{source}: not a snapshot of an index ({line}); give another file") from error
