"""The axes of a comparison: what a person types, and what the grid takes."""

from __future__ import annotations

import re
from typing import Any

from loracomp.app.requests import Axis
from loracomp.errors import UsageError

NOTHING = "nothing"
FIELDS = ("method", "weight", "adapter", "seed", "steps", "guidance", "scheduler", "prompt")
STARTS = {
    "method": "merge, switch, composite",
    "weight": "0, 0.5, 1",
    "adapter": "",
    "seed": "1, 2, 3",
    "steps": "8, 16, 25",
    "guidance": "1, 2, 4",
    "scheduler": "ddim, euler",
    "prompt": "",
}
HINTS = {
    "adapter": "names, separated by commas",
    "prompt": "prompts, separated by |",
    NOTHING: "choose what changes first",
}
_WHOLE = ("seed", "steps")
_NUMBERS = (*_WHOLE, "weight", "guidance")
_RANGE = re.compile(r"(\d{1,9})\s*(?:\.\.|-)\s*(\d{1,9})")
_MOST = 100


def axis(library: Any, name: str, field: str, text: str, adapter: str) -> Axis | None:
    """The axis behind one row of the form; None where nothing changes.

    Args:
        library: Where names of adapters are looked up.
        name: What messages call the row.
        field: What changes, one of :data:`FIELDS`.
        text: The values as typed.
        adapter: Id of the adapter that it is about; empty for the first.

    Raises:
        UsageError: Values that cannot be read; the message names the row.
        NotFoundError: A name that no adapter has.
    """
    if field not in FIELDS:
        return None
    parts = [part.strip() for part in text.split("|" if field == "prompt" else ",") if part.strip()]
    if not parts:
        raise UsageError(f"{name}: no values; write some, such as {STARTS[field] or HINTS[field]}")
    values: list[Any] = []
    for part in parts:
        values += _values(library, name, field, part)
    if len(values) > _MOST:
        raise UsageError(f"{name}: {len(values)} values are too many; at most {_MOST}")
    about = adapter if field in ("weight", "adapter") else ""
    return Axis.model_validate({"field": field, "values": values, "adapter": about})


def _values(library: Any, name: str, field: str, part: str) -> list[Any]:
    """The values of one part: 1..4 are four seeds."""
    if field == "adapter":
        return [library.by_name(part).id]
    if field not in _NUMBERS:
        return [part]
    if field in _WHOLE and (found := _RANGE.fullmatch(part)):
        first, last = int(found[1]), int(found[2])
        return list(range(first, min(last, first + _MOST) + 1))
    try:
        return [int(part) if field in _WHOLE else float(part)]
    except ValueError:
        raise UsageError(f"{name}: {part!r} is no number; separate values by commas") from None
