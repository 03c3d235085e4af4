"""A gate as constants: what it did to these adapters in a run, as factors by layer and step.

A learned gate depends on what passes through it, so it cannot be folded into weights. Its best constants can,
and a table of them costs what any other gate program costs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loracomp.errors import FormatError, ResourceError, UsageError

if TYPE_CHECKING:
    from loracomp.fusion.gated.watching import Seen

_KEY = "loracomp.gates"


def write_table(path: Path, seen: Seen, adapters: Sequence[str]) -> None:
    """Writes what was seen as a table that ``--option table=FILE`` takes.

    Args:
        path: File to write.
        seen: From a run.
        adapters: Names of the adapters, in order.

    Raises:
        ResourceError: It cannot be written.
    """
    layers = {name: _plain(values) for name, values in sorted(seen.layers.items())}
    parts = {_KEY: 1, "adapters": list(adapters), "levels": list(seen.levels), "unexplained": seen.spread}
    try:
        path.write_text(json.dumps({**parts, "layers": layers}) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None


def factors(path: str, steps: int, adapters: int) -> dict[str, Tensor]:
    """Factors by layer for a run of ``steps`` steps, shape (steps, adapters).

    A table of another number of steps is read at the same share of the run.

    Raises:
        ResourceError: There is no such file.
        FormatError: It is no table.
        UsageError: It is for another number of adapters.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ResourceError(f"{path}: no such table of gates; `loracomp compose … --explain` writes one")
    found = _read(file, file.stat().st_mtime_ns)
    count = len(next(iter(found.values()))[0]) if found else adapters
    if count != adapters:
        raise UsageError(f"{path}: a table for {count} adapters, and there are {adapters}")
    place = [(step * len(rows)) // steps for rows in list(found.values())[:1] for step in range(steps)]
    return {name: rows[place] for name, rows in found.items()}


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> dict[str, Tensor]:
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        if parts[_KEY] != 1:
            raise FormatError(f"{path}: a table of another version of loracomp; make it anew")
        rows = {
            str(name): torch.tensor(values, dtype=torch.float32) for name, values in parts["layers"].items()
        }
        shapes = {tuple(values.shape) for values in rows.values()}
        if len(shapes) > 1 or any(len(shape) != 2 or 0 in shape for shape in shapes):
            raise ValueError(f"layers of shapes {sorted(shapes)}")
        if not all(bool(values.isfinite().all()) for values in rows.values()):
            raise ValueError("numbers that are not finite")
        return rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FormatError(f"{path}: not a table of gates ({error})") from None


def _plain(values: Tensor) -> list[Any]:
    """Rows of numbers, 1 where nothing was seen."""
    return [[round(value, 4) for value in row] for row in values.nan_to_num(1.0).tolist()]
