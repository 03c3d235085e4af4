"""The picked adapters: a list that the page edits, and what it means for a request."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

from loracomp.app.adapter_rows import AdapterRow
from loracomp.app.ui.sources import thumbnail
from loracomp.app.ui.theme import script
from loracomp.errors import UsageError


def picks_box() -> Any:
    """The cards; their value is a list of picks, see :func:`pick`."""
    return gr.HTML(
        [],
        html_template='<ul class="lc-picks" aria-label="Picked adapters"></ul>',
        js_on_load=script("picks"),
        apply_default_css=False,
        elem_id="picks",
        elem_classes=["lc-panel"],
    )


def pick(row: AdapterRow, weight: float | None = None) -> dict[str, Any]:
    """The pick of an adapter of the library, at its own default weight unless told otherwise."""
    return {
        "id": row.id,
        "name": row.name,
        "thumb": thumbnail(row) or "",
        "weight": row.weight if weight is None else weight,
        "low": row.low,
        "high": row.high,
        "triggers": list(row.triggers)[:8],
        "points": None,
        "mask": False,
    }


def checked(value: Any, most: int = 64) -> list[dict[str, Any]]:
    """Picks as a browser sent them; what has no id is left out.

    Raises:
        UsageError: A weight that is no number.
    """
    found = []
    for entry in value if isinstance(value, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            continue
        weight = entry.get("weight")
        if not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise UsageError(
                f"{entry.get('name', 'adapter')}: its weight is no number; write one such as 0.8"
            )
        found.append(entry)
    return found[:most]


def curve(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Strength over the run: the curve's points times the weight; None for one weight throughout.

    A restored curve that the editor cannot draw is handed on as it is.

    Raises:
        UsageError: Points that are no numbers.
    """
    if not entry.get("points"):
        held = entry.get("curve")
        return held if isinstance(held, dict) else None
    try:
        points = [(float(x), float(y) * float(entry["weight"])) for x, y in entry["points"]]
    except (TypeError, ValueError):
        raise UsageError(f"{entry.get('name')}: its curve is damaged; choose a shape again") from None
    return {"points": points, "axis": "run", "shape": "linear"}


def with_word(prompt: str, word: str) -> str:
    """The prompt with a trigger word at its end, unless it is there."""
    if not word or word.lower() in prompt.lower():
        return prompt
    return f"{prompt.rstrip().rstrip(',')}, {word}" if prompt.strip() else word
