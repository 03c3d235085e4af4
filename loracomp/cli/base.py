"""``loracomp base list`` and ``loracomp base show``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, emit_table

app = typer.Typer(help="The base models that loracomp knows.", no_args_is_help=True)


@app.command("list")
def list_bases(as_json: Json = False) -> None:
    """List the base models."""
    from loracomp.bases import BASES, modules

    if as_json:
        emit_json({"bases": [asdict(base) for base in BASES.values()]})
        return
    rows = [
        (b.name, b.title, b.denoiser, b.prediction, b.resolution, len(modules(b.name)))
        for b in BASES.values()
    ]
    emit_table("", ["name", "model", "denoiser", "prediction", "pixels", "layers"], rows)


@app.command("show")
def show_base(
    name: Annotated[str, typer.Argument(help="A name from `loracomp base list`.")], as_json: Json = False
) -> None:
    """Show everything about one base model."""
    from loracomp.bases import get_base
    from loracomp.loading import asset_path, defaults

    base = get_base(name)
    facts = asdict(base) | {"defaults": defaults(name, base)}
    path = asset_path(base)
    facts["location"] = str(path) if path else base.source
    if as_json:
        emit_json(facts)
        return
    emit_table("", ["fact", "value"], [(key, _plain(value)) for key, value in facts.items()])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
