"""``loracomp doctor`` and ``loracomp convert``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loracomp.cli.screen import Json, emit_json, emit_table, steps_bar

if TYPE_CHECKING:
    from loracomp.formats import Checkup, Conversion, Diagnosis, Report

_IN_FULL = 3

Base = Annotated[
    str | None,
    typer.Option(help="The base they must fit, a name or a diffusers folder; recognised if left out."),
]
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
    from loracomp.formats import base_layers
    from loracomp.formats import doctor as examine

    paths = [_place(file) for file in files]
    folder = _folder(base_folder)
    base, own = base_layers(base)
    start = time.monotonic()
    with steps_bar("examining", as_json or not (len(paths) > 1 or paths[0].is_dir()), "file") as progress:
        checkup = examine(paths, base=base, modules=own, base_folder=folder, jobs=jobs, progress=progress)
    if as_json:
        emit_json(checkup.to_dict())
    else:
        _print_checkup(checkup, time.monotonic() - start)
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


def _print_checkup(checkup: Checkup, seconds: float) -> None:
    """All there is to say of few files; of many a line each and what is wrong, and numbers at the end."""
    many = len(checkup.diagnoses) > _IN_FULL
    for diagnosis in checkup.diagnoses:
        typer.echo(_line(diagnosis))
        if many:
            for finding in diagnosis.findings:
                if finding.level != "note":
                    typer.echo(f"    {finding.level}: {finding.message}; {finding.fix}")
        elif diagnosis.report is not None:
            _print_report(diagnosis, diagnosis.report)
    for group in checkup.duplicates:
        typer.echo(f"the same adapter: {', '.join(group)}")
    if len(checkup.diagnoses) > 1:
        typer.echo(f"{_summary(checkup)}; {seconds:.0f} s, {len(checkup.diagnoses) / seconds:.1f} files/s")


def _summary(checkup: Checkup) -> str:
    """How many files are in order, and what is the matter with how many others."""
    found = checkup.diagnoses
    warned = [d for d in found if d.complete and any(f.level == "warning" for f in d.findings)]
    numbers = {
        "whole and right": sum(d.complete for d in found) - len(warned),
        "whole, with warnings": len(warned),
        "not whole": sum(d.report is not None and not d.complete for d in found),
        "unreadable": sum(d.report is None for d in found),
        "more than once": sum(map(len, checkup.duplicates)),
    }
    return f"{len(found)} files: " + ", ".join(f"{count} {what}" for what, count in numbers.items() if count)


def _line(diagnosis: Diagnosis) -> str:
    report = diagnosis.report
    if report is None:
        return f"✗ {diagnosis.error}"
    warned = any(finding.level == "warning" for finding in diagnosis.findings)
    mark = "✗" if not report.complete else "!" if warned else "✓"
    strengths = _strengths(report)
    return f"{mark} {report.file}: {report.dialect}, {report.base} ({report.confidence:.0%}), {strengths}"


def _strengths(report: Report) -> str:
    strengths = [f"×{scale:g}" for scale in sorted({row.scale for row in report.rows})]
    return ", ".join(strengths[:6]) + (" …" if len(strengths) > 6 else "")


def _print_report(diagnosis: Diagnosis, report: Report) -> None:
    layers = (
        f"{len(report.rows)} matched, {len(report.unmatched)} tensors unmatched, {len(report.ignored)} zero"
    )
    facts = [
        ("layers", layers),
        ("strength", _strengths(report)),
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
    thumbnail: Annotated[Path | None, typer.Option(help="A picture to put into the header.")] = None,
    entries: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A header entry (modelspec.license=CC-BY-4.0)."),
    ] = None,
    base: Base = None,
    base_folder: BaseFolder = None,
    allow_partial: Partial = False,
    as_json: Json = False,
) -> None:
    """Write a LoRA in another dialect, rank or dtype, and tell the error that this makes."""
    from loracomp.formats import base_layers, folder_weights
    from loracomp.formats import convert as write
    from loracomp.formats.writing import dtype_named
    from loracomp.library import find

    folder = _folder(base_folder)
    base, own = base_layers(base)
    done = write(
        find(source),
        target,
        dialect=dialect,
        base=base,
        modules=own,
        rank=rank,
        dtype=dtype_named(dtype) if dtype else None,
        allow_partial=allow_partial,
        weights=folder_weights(folder) if folder else None,
        metadata=_entries(entries or [], thumbnail),
    )
    if as_json:
        emit_json(done.to_dict())
    else:
        _print_conversion(done)


def _entries(entries: list[str], picture: Path | None) -> dict[str, str]:
    """Header strings that a user asks for."""
    from loracomp.errors import UsageError
    from loracomp.formats import thumbnail

    table = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {entry}: give KEY=VALUE, such as modelspec.license=CC-BY-4.0")
        table[key] = value
    return table | ({"modelspec.thumbnail": thumbnail(picture)} if picture else {})


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
