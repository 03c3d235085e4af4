"""``loracomp adapters list``."""

from __future__ import annotations

from dataclasses import asdict

import typer

from loracomp.cli.screen import Json, emit_json, emit_table

app = typer.Typer(help="The adapters that ship with loracomp.", no_args_is_help=True)


@app.command("list")
def list_adapters(as_json: Json = False) -> None:
    """List the shipped adapters."""
    from loracomp.library import cards

    if as_json:
        emit_json({"adapters": [asdict(card) for card in cards()]})
        return
    rows = [
        (card.name, card.kind, card.base, card.trigger, f"{card.file.stat().st_size / 1e6:.2f} MB")
        for card in cards()
    ]
    emit_table("", ["name", "kind", "base", "say", "size"], rows)
