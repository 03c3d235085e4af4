"""``loracomp inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, emit_table

if TYPE_CHECKING:
    from loracomp.formats import Report


def inspect(
    file: Annotated[str, typer.Argument(help="A LoRA file, or the name of a shipped adapter.")],
    base: Annotated[str | None, typer.Option(help="The base it should fit; recognised if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is inside a LoRA: layers, ranks, strengths, base, metadata, health."""
    from loracomp.formats import inspect as read
    from loracomp.library import find

    report = read(find(file), base=base)
    if as_json:
        emit_json(report.to_dict())
    else:
        _print(report)
    if not report.complete:
        raise typer.Exit(4)


def _print(report: Report) -> None:
    rows = [
        (
            r.path,
            r.rank,
            f"{r.alpha:g}",
            f"{r.scale:g}",
            "×".join(map(str, r.shape)),
            r.dtype,
            f"{r.norm:.4g}",
        )
        for r in report.rows
    ]
    emit_table("", ["module", "rank", "alpha", "scale", "weight", "dtype", "‖ΔW‖"], rows)
    typer.echo()
    emit_table("", ["", ""], _facts(report))
    typer.echo()
    emit_table("", ["health", ""], _health(report))
    if report.metadata:
        typer.echo()
        emit_table("", ["metadata", ""], [(k, _short(v)) for k, v in sorted(report.metadata.items())])


def _facts(report: Report) -> list[tuple[str, Any]]:
    return [
        ("file", report.file),
        ("base", f"{report.base} (confidence {report.confidence:.0%})"),
        ("evidence", "; ".join(report.evidence)),
        *([("looks made for", report.resembles)] if report.resembles else []),
        ("dialect", report.dialect),
        ("modules", len(report.rows)),
        ("ranks", ", ".join(map(str, sorted({row.rank for row in report.rows})))),
        ("trigger words", ", ".join(report.trigger_words) or "none stated"),
        *report.hashes.items(),
    ]


def _health(report: Report) -> list[tuple[str, str]]:
    found = [(name, f"damaged: {why}") for name, why in report.damaged.items()]
    found += [(name, f"no place in {report.base}: {why}") for name, why in report.unmatched.items()]
    found += [(path, "zero: changes nothing") for path in report.zero]
    found += [(path, f"norm stands out (z = {z:+.1f})") for path, z in report.outliers.items()]
    return found or [("good", "all tensors have a place; no NaN, no zero module, no outlier")]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:157]}…"
