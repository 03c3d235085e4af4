"""``loracomp diagnose``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, emit_table
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from loracomp.adapter import Adapter
    from loracomp.formats.native import Table
    from loracomp.fusion.interference import Block, Interference


def diagnose(
    loras: Annotated[list[str], typer.Argument(help="NAME_OR_FILE[:WEIGHT] of two or more adapters.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG for the heat map.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Say what a merged file of this rank loses; the largest here.")
    ] = None,
    features: Annotated[
        bool | None,
        typer.Option(
            "--features/--no-features",
            help="Compare outputs on activations of the base too; by default where it ships with loracomp.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The base for --features, or whose layers adapters have; the adapters' own."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Tell what adapters will do to each other, before anything is drawn."""
    from loracomp.fusion.advice import advise
    from loracomp.fusion.heatmap import draw
    from loracomp.fusion.interference import interference
    from loracomp.library import find, open_adapter
    from loracomp.pipeline.measured import recall
    from loracomp.recipe import parse_use

    uses = [parse_use(text, "adapter") for text in loras]
    pipe, own = _own_base(base, features, device)
    adapters = [open_adapter(use.source, modules=own) for use in uses]
    known = [recall(a, a.base, [find(u.source).parent]) for a, u in zip(adapters, uses, strict=True)]
    seen = _features(adapters, features, base, device, pipe)
    report = interference(
        adapters,
        [use.weight for use in uses],
        rank=rank,
        features=seen,
        bands=[found.frequency.band if found and found.frequency else None for found in known],
    )
    if out is not None:
        try:
            draw(report).save(out, format="PNG")
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from error
    advice = advise(report)
    if as_json:
        emit_json(report_values(report) | {"advice": asdict(advice), "heat_map": str(out) if out else None})
        return
    _print(report)
    typer.echo(f"\ntake --method {advice.method}: {advice.reason}")
    for line in advice.warnings:
        typer.echo(f"note: {line}")
    if out is not None:
        typer.echo(out)


def _own_base(base: str | None, features: bool | None, device: str) -> tuple[Any, Table | None]:
    """The pipeline of a base that is no known name, None without features, and layers of its own."""
    from loracomp.bases import BASES
    from loracomp.formats import base_layers
    from loracomp.loading import open_base
    from loracomp.pipeline import own_layers

    if base is None or base in BASES:
        return None, None
    if features is False:
        return None, base_layers(base)[1]
    pipe = open_base(base, device=device)
    return pipe, own_layers(pipe)


def _features(
    adapters: list[Adapter], wanted: bool | None, base: str | None, device: str, pipe: Any
) -> dict[str, Tensor] | None:
    """Cosines of outputs, where the base is at hand or was asked for."""
    from loracomp.bases import BASES
    from loracomp.loading import asset_path, open_base
    from loracomp.pipeline.features import feature_cosines

    name = base or adapters[0].base
    here = name in BASES and asset_path(BASES[name]) is not None
    if wanted is False or (wanted is None and not here and base is None):
        return None
    return feature_cosines(open_base(name, device=device) if pipe is None else pipe, adapters)


def report_values(report: Interference) -> dict[str, Any]:
    """The report as plain JSON values."""
    pairs = [[report.adapters[i], report.adapters[j]] for i, j in report.pairs]
    shared = [
        {"adapters": [report.adapters[i], report.adapters[j]], "words": list(words)}
        for (i, j), words in report.collisions.items()
    ]
    return {
        "adapters": list(report.adapters),
        "weights": list(report.weights),
        "bands": list(report.bands),
        "rank": report.rank,
        "pairs": pairs,
        "blocks": [asdict(block) for block in report.blocks],
        "whole": asdict(report.whole),
        "collisions": shared,
    }


def _print(report: Interference) -> None:
    for number, (i, j) in enumerate(report.pairs):
        title = f"{report.adapters[i]} + {report.adapters[j]}"
        rows = [_row(block, number, i, j) for block in (*report.blocks, report.whole)]
        emit_table("", [title, "cosine", "of outputs", "shared", "norms"], rows)
        typer.echo()
    losses = [(block.name, f"{block.lost:.1%}") for block in (*report.blocks, report.whole)]
    emit_table("", ["block", f"lost at rank {report.rank}"], losses)
    if any(report.bands):
        typer.echo()
        bands = [
            (name, band or "not profiled") for name, band in zip(report.adapters, report.bands, strict=True)
        ]
        emit_table("", ["adapter", "frequencies"], bands)


def _row(block: Block, number: int, first: int, second: int) -> tuple[str, ...]:
    def plain(value: float | None) -> str:
        return "–" if value is None else f"{round(value, 2) + 0.0:.2f}"

    features = block.features[number] if block.features else None
    norms = f"{block.norms[first]:.3g} : {block.norms[second]:.3g}"
    return block.name, plain(block.cosines[number]), plain(features), plain(block.overlaps[number]), norms
