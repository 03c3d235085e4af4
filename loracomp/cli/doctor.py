"""``loracomp doctor`` and ``loracomp convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loracomp.cli.screen import Json, emit_json, emit_table, steps_bar

if TYPE_CHECKING:
    from loracomp.formats import Conversion, Diagnosis

Base = Annotated[str | None, typer.Option(help="The base they must fit; recognised if left out.")]
BaseFolder = Annotated[
    str | None,
    typer.Option(help="The base in diffusers format (or 'glyph'): for DoRA and intruder dimensions."),
]
Partial = Annotated[bool, typer.Option("--allow-partial", help="Accept what cannot be matched whole.")]


def doctor(
    files: Annotated[list[str], typer.Argument(help="LoRA files, folders of them, or shipped adapters.")],
    base: Base = None,
    base_folder: BaseFolder = None,
    allow_partial: Partial = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; all cores if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Tell whether LoRAs load whole and right, here and in other tools, and which are the same."""
    from loracomp.formats import doctor as examine

    paths = [_place(file) for file in files]
    folder = _folder(base_folder)
    with steps_bar("examining", as_json or not (len(paths) > 1 or paths[0].is_dir())) as progress:
        checkup = examine(paths, base=base, base_folder=folder, jobs=jobs, progress=progress)
    if as_json:
        emit_json(checkup.to_dict())
    else:
        for diagnosis in checkup.diagnoses:
            _print(diagnosis)
        for group in checkup.duplicates:
            typer.echo(f"the same adapter: {', '.join(group)}")
    unreadable = any(diagnosis.report is None for diagnosis in checkup.diagnoses)
    if unreadable or not (checkup.complete or allow_partial):
        raise typer.Exit(4)


def _place(file: str) -> Path:
    from loracomp.library import find

    return Path(file) if Path(file).is_dir() else Path(find(file))


def _folder(base_folder: str | None) -> Path | None:
    """The folder that is meant: a path, or the name of a base that is shipped."""
    from loracomp.formats import shipped_folder

    return None if base_folder is None else shipped_folder(base_folder) or Path(base_folder)


def _print(diagnosis: Diagnosis) -> None:
    report = diagnosis.report
    if report is None:
        typer.echo(f"✗ {diagnosis.error}\n")
        return
    matched = len(report.rows)
    strengths = sorted({f"×{row.scale:g}" for row in report.rows})
    mark = "✓" if report.complete else "✗"
    typer.echo(f"{mark} {report.file}: {report.dialect}, {report.base} ({report.confidence:.0%})")
    facts = [
        (
            "layers",
            f"{matched} matched, {len(report.unmatched)} tensors unmatched, {len(report.ignored)} zero",
        ),
        ("strength", ", ".join(strengths[:6]) + (" …" if len(strengths) > 6 else "")),
        ("evidence", "; ".join(report.evidence)),
        ("identity", f"AutoV3 {report.hashes['autov3']}, canonical {report.canonical_hash}"),
        *((finding.level, f"{finding.message}; {finding.fix}") for finding in diagnosis.findings),
    ]
    emit_table("", ["", ""], facts)
    typer.echo()


def convert(
    source: Annotated[str, typer.Argument(help="A LoRA file, or the name of a shipped adapter.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    dialect: Annotated[str, typer.Option(help="What to write; 'auto' suits the base.")] = "auto",
    rank: Annotated[int | None, typer.Option(help="Largest rank of a layer.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16 or float32.")] = None,
    base: Base = None,
    base_folder: BaseFolder = None,
    allow_partial: Partial = False,
    as_json: Json = False,
) -> None:
    """Write a LoRA in another dialect, rank or dtype, and tell the error that this makes."""
    from loracomp.formats import convert as write
    from loracomp.formats import folder_weights
    from loracomp.formats.writing import dtype_named
    from loracomp.library import find

    folder = _folder(base_folder)
    done = write(
        find(source),
        target,
        dialect=dialect,
        base=base,
        rank=rank,
        dtype=dtype_named(dtype) if dtype else None,
        allow_partial=allow_partial,
        weights=folder_weights(folder) if folder else None,
    )
    if as_json:
        emit_json(done.to_dict())
    else:
        _print_conversion(done)


def _print_conversion(done: Conversion) -> None:
    changed = [row for row in done.layers if row.error > 0 or row.rank_after != row.rank_before]
    rows = [(r.path, f"{r.rank_before} → {r.rank_after}", f"{r.error:.3g}") for r in changed]
    typer.echo(f"{done.target}: {done.dialect} for {done.base}, {len(done.layers)} layers")
    if rows:
        emit_table("", ["layer", "rank", "relative error"], rows)
    typer.echo(f"relative error in total: {done.error:.3g}")
    for name, error in done.approximated.items():
        typer.echo(f"approximated: {name} misses {error:.3g}")
    for key, reason in done.left_out.items():
        typer.echo(f"left out: {key} ({reason})")
