"""``loracomp app``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loracomp.errors import ResourceError


def app(
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on; others reach 0.0.0.0.")] = "127.0.0.1",
    library: Annotated[
        list[Path] | None, typer.Option(help="Folder of LoRA files; repeatable, the first takes new ones.")
    ] = None,
    pictures: Annotated[list[Path] | None, typer.Option(help="Folder of training data; repeatable.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of jobs, history, recipes, uploads and index.")] = Path(
        "loracomp-app"
    ),
    token: Annotated[
        list[str] | None,
        typer.Option(envvar="LORACOMP_TOKEN", help="SECRET or USER=SECRET; repeatable, one per user."),
    ] = None,
    base: Annotated[str, typer.Option(help="Name, diffusers folder, checkpoint or hub id.")] = "glyph",
    codec: Annotated[Path | None, typer.Option(help="Watermark codec; the shipped one if left out.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Its calibration; the shipped one if left out.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Compose, compare, train and mark in a browser; an HTTP interface is at /api/v1/docs."""
    try:
        from loracomp.app.page_import import lean

        with lean():
            from loracomp.app.server import serve
    except ImportError as error:
        what = f"the app needs more packages ({error.name})"
        raise ResourceError(f"{what}; pip install 'loracomp[app]'") from None
    from loracomp.app.settings import Settings, read_tokens

    settings = Settings(
        data=data,
        library=tuple(library or ()),
        pictures=tuple(pictures or ()),
        base=base,
        device=device,
        dtype=dtype,
        host=host,
        port=port,
        tokens=read_tokens(token or []),
        codec=codec,
        calibration=calibration,
    )
    serve(settings, lambda address: typer.echo(f"loracomp app: {address}  (Ctrl-C ends it)"))
