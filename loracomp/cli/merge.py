"""``loracomp merge`` and ``loracomp fold``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, emit_table, steps_bar
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.fusion.offline import Report

Adapters = Annotated[list[str], typer.Argument(help="LoRA files or shipped adapters: NAME_OR_FILE[:WEIGHT].")]
Weights = Annotated[str | None, typer.Option(help="One number per adapter, with commas: 1,0.8.")]


def merge(
    adapters: Adapters,
    out: Annotated[Path, typer.Option(help="The LoRA file to write.")],
    method: Annotated[
        str, typer.Option(help="concat, svd, ties, dare, della, breadcrumbs, lego, lion or fedsvd.")
    ] = "svd",
    weights: Weights = None,
    samples: Annotated[
        str | None, typer.Option(help="Sample counts instead of weights: the average of the updates.")
    ] = None,
    rank: Annotated[
        str | None, typer.Option(help="A number, auto, energy, or a share such as energy:0.95.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="NAME=VALUE of the method, e.g. density=0.3.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of dare and della.")] = 0,
    name: Annotated[str | None, typer.Option(help="What the result is called.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The base they must fit, a name or a diffusers folder; recognised if left out."),
    ] = None,
    dialect: Annotated[str, typer.Option(help="What to write; 'auto' suits the base.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16 or float32.")] = None,
    total: Annotated[bool, typer.Option("--total", help="Print the sums without the layers.")] = False,
    as_json: Json = False,
) -> None:
    """Merge several LoRAs into one file, and tell how far it is from their exact sum."""
    from loracomp.cli.compose import method_options
    from loracomp.formats import base_layers
    from loracomp.formats.writing import dtype_named
    from loracomp.fusion.offline import merge_files

    files, given = _uses(adapters, weights, samples)
    base, own = base_layers(base)
    counts = _numbers(samples, "--samples") if samples is not None else None
    with steps_bar("merging", as_json) as progress:
        report = merge_files(
            files,
            out,
            given,
            method,
            samples=counts,
            rank=rank,
            seed=seed,
            name=name or out.stem,
            base=base,
            modules=own,
            dialect=dialect,
            dtype=dtype_named(dtype) if dtype else None,
            progress=progress,
            **method_options(option or []),
        )
    if as_json:
        emit_json({"file": str(out), **report.to_dict()})
    else:
        _print(out, report, total)


def fold(
    adapters: Adapters,
    into: Annotated[
        str, typer.Option(help="The base: a folder in diffusers format, a .safetensors file, or 'glyph'.")
    ],
    out: Annotated[Path, typer.Option(help="The folder or file to write; the base stays as it is.")],
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Fold LoRAs into a base model's weights, from the pristine weights and rounded once."""
    from contextlib import ExitStack

    from loracomp.formats import shipped_folder
    from loracomp.formats.layerfile import LayerFile
    from loracomp.fusion.offline import fold_checkpoint

    files, given = _uses(adapters, weights, None)
    with ExitStack() as opened, steps_bar("folding", as_json) as progress:
        parents = [opened.enter_context(LayerFile(file)) for file in files]
        source = shipped_folder(into) or Path(into)
        report = fold_checkpoint(source, out, parents, given, progress=progress)
    if as_json:
        emit_json({"target": str(out), **report.to_dict()})
        return
    rows = [(row.path, row.dtype, f"{row.change:.3g}", f"{row.loss:.3g}") for row in report.layers]
    emit_table("", ["layer", "type", "change", "lost to rounding"], rows)
    typer.echo(f"{out}: {len(rows)} weights changed, {report.loss:.3g} of the update lost to rounding")


def _uses(
    adapters: list[str], weights: str | None, samples: str | None
) -> tuple[list[Path], list[float] | None]:
    """Files and weights; None for the weights where sample counts take their place."""
    from loracomp.library import find
    from loracomp.recipe import parse_use

    uses = [parse_use(text) for text in adapters]
    files = [find(use.source) for use in uses]
    inline = any(use.source != text for use, text in zip(uses, adapters, strict=True))
    ways = [inline, weights is not None, samples is not None]
    if sum(ways) > 1:
        raise UsageError("weights in more than one way; write A:0.8, or --weights, or --samples")
    if weights is not None:
        return files, _numbers(weights, "--weights")
    return files, None if samples is not None else [use.weight for use in uses]


def _numbers(text: str, option: str) -> list[float]:
    from loracomp.recipe import parse_weight

    return [parse_weight(part.strip(), f"{option} {text}") for part in text.split(",")]


def _print(out: Path, report: Report, total: bool) -> None:
    if not total:
        rows: list[tuple[Any, ...]] = [
            (row.path, row.rank, f"{row.size:.3f}", f"{row.error:.3g}") for row in report.layers
        ]
        emit_table("", ["layer", "rank", "size", "relative error"], rows)
    kept = ["-" if share is None else f"{share:.1%}" for share in report.kept]
    parents = zip(report.adapters, (f"{weight:g}" for weight in report.weights), kept, strict=True)
    emit_table("", ["adapter", "weight", "kept"], parents)
    typer.echo(f"{out}: {report.method} for {report.base}, {len(report.layers)} layers, rank {report.rank}")
    typer.echo(f"size against the exact sum: {report.size:.3f}; relative error in total: {report.error:.3g}")
    if report.naive_error is not None:
        typer.echo(f"averaging the factors instead would be off by {report.naive_error:.3g}")
