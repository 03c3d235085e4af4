"""What commands print: tables and bars on a terminal, plain lines elsewhere, JSON on demand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from loracomp.errors import LoracompError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def emit_json(value: Any) -> None:
    """Prints a value as JSON, NaN and infinity as null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def emit_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; a width of its own where the output is no terminal, so that nothing is cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 200, highlight=False)
    with console.capture() as text:
        console.print(table)
    typer.echo(text.get() if terminal else "\n".join(map(str.rstrip, text.get().splitlines())))


@contextmanager
def steps_bar(label: str, quiet: bool, unit: str = "step") -> Iterator[Any]:
    """A callback (done, total): a bar on a terminal, else a line every few seconds on stderr."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
    else:
        yield _plain(label, unit)


def _plain(label: str, unit: str) -> Any:
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 5:
            last = time.monotonic()
            typer.echo(f"{label}: {unit} {done} of {total}", err=True)

    return report


def fail(error: LoracompError) -> NoReturn:
    """Prints the error as one line (an object with ``--json``) and exits with its code."""
    line = " ".join(str(error).split())
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": line, "exit_code": error.exit_code}), err=True)
    else:
        typer.echo(f"loracomp: {line}", err=True)
    sys.exit(error.exit_code)
