"""``loracomp methods``."""

from __future__ import annotations

from dataclasses import asdict

from loracomp.cli.screen import Json, emit_json, emit_table


def methods(as_json: Json = False) -> None:
    """List the composition methods."""
    from inspect import Parameter, signature

    from loracomp.fusion import METHODS

    rows = []
    for name in METHODS:
        entry = asdict(METHODS.entry(name))
        parameters = signature(entry.pop("item")).parameters.values()
        entry["options"] = {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
        rows.append(entry)
    if as_json:
        emit_json({"methods": rows})
        return
    emit_table(
        "",
        ["method", "what it does", "options", "arXiv"],
        [
            (r["name"], r["summary"], ", ".join(f"{k}={v}" for k, v in r["options"].items()), r["paper"])
            for r in rows
        ],
    )
