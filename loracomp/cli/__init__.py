"""The command line: ``loracomp COMMAND``.

Commands parse, call one public function and print. Errors of :mod:`loracomp.errors` become one line
and an exit code here and nowhere else:

0 done or verified · 1 negative · 2 usage · 3 inconclusive · 4 bad file, partial load or mismatch ·
5 missing calibration or resource · 130 interrupted after a clean save
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from loracomp import __version__
from loracomp.cli import (
    adapters,
    base,
    benchmark,
    compose,
    diagnose,
    doctor,
    index,
    inspect,
    merge,
    methods,
    profile,
    synthesis,
    train,
    watermark_measure,
    web,
)
from loracomp.cli.screen import fail
from loracomp.errors import LoracompError

app = typer.Typer(
    name="loracomp",
    help="Train, watermark, find and compose image LoRAs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compose")(compose.compose)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("convert")(doctor.convert)
app.command("merge")(merge.merge)
app.command("fold")(merge.fold)
app.command("methods")(methods.methods)
app.command("app")(web.app)
app.command("diagnose")(diagnose.diagnose)
app.command("profile")(profile.profile)
app.add_typer(train.app, name="train")
app.add_typer(base.app, name="base")
app.add_typer(adapters.app, name="adapters")
app.add_typer(benchmark.app, name="benchmark")
index.app.command("synthesize")(synthesis.synthesize)
app.add_typer(index.app, name="index")
app.add_typer(watermark_measure.app, name="watermark")


class InterruptedByUserError(LoracompError):
    """Ctrl-C where nothing had to be saved."""

    exit_code = 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise InterruptedByUserError("interrupted")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loracomp {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, watermark, find and compose image LoRAs."""


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except LoracompError as error:
        fail(error)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
