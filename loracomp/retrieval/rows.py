"""The table's schema as Arrow types, shared by the engines' snapshots and the embedded engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from loracomp.errors import ResourceError
from loracomp.retrieval.filters import COLUMNS
from loracomp.retrieval.index import SPACES, VALUES, Row


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
    fields += [pa.field(f"v_{s}", pa.list_(pa.float32(), n), nullable=False) for s, n in SPACES.items()]
    return pa.schema(fields)


def plain_columns() -> tuple[str, ...]:
    """Columns that hits and scans carry: neither vectors nor probes."""
    return (*COLUMNS, *VALUES)


def to_arrow(rows: Iterable[Row]) -> Any:
    """An Arrow table of rows; raises ValueError for vectors of another width."""
    import numpy as np

    pa = arrow()
    held = list(rows)
    shape = schema()
    columns = []
    for part in shape:
        if part.name.startswith("v_"):
            space = part.name.removeprefix("v_")
            values = (
                np.stack([np.asarray(row[part.name], np.float32) for row in held]) if held else np.zeros(0)
            )
            if held and values.shape[1:] != (SPACES[space],):
                raise ValueError(f"vectors of {values.shape[1:]} in the space {space}, not {SPACES[space]}")
            flat = pa.array(values.reshape(-1), pa.float32())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, SPACES[space]))
        else:
            columns.append(pa.array([row[part.name] for row in held], part.type))
    return pa.Table.from_arrays(columns, schema=shape)


def from_arrow(table: Any, vectors: bool = False) -> list[dict[str, Any]]:
    """Rows of an Arrow table; vectors, where wanted, as numpy arrays."""
    import numpy as np

    plain = [name for name in table.column_names if not name.startswith("v_")]
    rows: list[dict[str, Any]] = table.select([name for name in plain if name in _known()]).to_pylist()
    if vectors:
        for space, width in SPACES.items():
            held = table.column(f"v_{space}").combine_chunks()
            values = np.asarray(held.flatten(), np.float32).reshape(-1, width)
            for row, vector in zip(rows, values, strict=True):
                row[f"v_{space}"] = vector
    return rows


def _known() -> Sequence[str]:
    return (*COLUMNS, *VALUES, "probes")
