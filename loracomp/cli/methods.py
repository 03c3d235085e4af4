"""``loracomp methods``."""

from __future__ import annotations

from typing import Any

from loracomp.cli.screen import Json, emit_json, emit_table


def methods(as_json: Json = False) -> None:
    """List the composition methods, and the methods that merge files."""
    from loracomp.fusion import METHODS
    from loracomp.fusion.offline import MERGES

    live = [_row(METHODS.entry(name), _options(METHODS[name])) for name in METHODS]
    merges = [_row(MERGES.entry(name), MERGES[name].options) for name in MERGES]
    if as_json:
        emit_json({"methods": live, "merges": merges})
        return
    _table("compose --method", live)
    _table("merge --method", merges)


def _options(method: Any) -> dict[str, Any]:
    """Keyword options of a method and their defaults."""
    from inspect import Parameter, signature

    parameters = signature(method).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}


def _row(entry: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {"name": entry.name, "summary": entry.summary, "paper": entry.paper, "options": options}


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    cells = [
        (r["name"], r["summary"], ", ".join(f"{k}={v}" for k, v in r["options"].items()), r["paper"])
        for r in rows
    ]
    emit_table("", [title, "what it does", "options", "arXiv"], cells)
