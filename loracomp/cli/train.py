"""``loracomp train``: run, resume, many, gate, check."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json
from loracomp.cli.train_gate import gate
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.training.loop import Report
    from loracomp.training.result import Trained
    from loracomp.training.survey import Survey

app = typer.Typer(help="Train an adapter on a folder of captioned pictures.", no_args_is_help=True)
app.command("gate")(gate)

Data = Annotated[Path, typer.Argument(help="Folder of pictures with .txt captions or a metadata.jsonl.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


@app.command("run")
def run(
    data: Data,
    kind: Annotated[str | None, typer.Option(help="style, subject or accelerator.")] = None,
    name: Annotated[str | None, typer.Option(help="What the adapter is called.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; NAME.safetensors.")] = None,
    base: Annotated[str | None, typer.Option(help="Name, diffusers folder, checkpoint or hub id.")] = None,
    trigger: Annotated[str | None, typer.Option(help="Words that call it, comma-separated.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the updates.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides weights, order, noise and samples.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16 or fp32.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; see `train settings`."),
    ] = None,
    watermark: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Key file: what it draws carries this key's mark.")
    ] = None,
    mark: Annotated[
        list[str] | None,
        typer.Option("--mark", metavar="KEY=VALUE", help="A mark setting: method=authenlora."),
    ] = None,
    codec: Annotated[Path | None, typer.Option(help="The mark's codec; the shipped one if left out.")] = None,
    shadow: Annotated[
        list[str] | None, typer.Option("--shadow", help="A LoRA that the mark has to stand; repeatable.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a style, a subject or an accelerator, and save it with a sample grid beside it.

    Settings come from the preset of kind and base, then --config, then --set, then the options here.
    Ctrl-C finishes the step and saves; `train resume` goes on.
    """
    from loracomp.training.config import make_config, parse_settings, read_toml
    from loracomp.training.run import train

    options = {
        "kind": kind, "name": name, "base": base, "trigger": trigger, "steps": steps, "rank": rank,
        "lr": lr, "batch": batch, "seed": seed, "precision": precision,
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None}
    file = read_toml(config) if config else {}
    chosen = make_config({**file, **parse_settings(setting or []), **given})
    target = out or Path(f"{chosen.name}.safetensors")
    if watermark is None and (mark or codec or shadow):
        raise UsageError("--mark, --codec and --shadow are about a mark; give its key with --watermark KEY")
    with watching(as_json) as (report, stop):
        if watermark is None:
            result = train(chosen, data, target, device=device, report=report, stop=stop)
        else:
            marking = _marking(watermark, mark or [], codec, chosen.base, shadow or [])
            from loracomp.training.watermark.run import train_marked

            result = train_marked(chosen, data, target, **marking, device=device, report=report, stop=stop)
    _show(result, as_json)


def _marking(
    key: Path, settings: list[str], codec: Path | None, base: str, shadows: list[str]
) -> dict[str, Any]:
    """What a marked run is given beyond a plain one."""
    from loracomp.cli.watermark import open_codec
    from loracomp.library import open_adapter
    from loracomp.training.config import parse_settings
    from loracomp.training.watermark.settings import mark_settings
    from loracomp.watermark.keyfile import read_key

    return {
        "key": read_key(key),
        "settings": mark_settings(parse_settings(settings)),
        "codec": open_codec(codec, base),
        "shadows": [open_adapter(name) for name in shadows],
    }


@app.command("resume")
def resume(
    out: Annotated[Path, typer.Argument(help="The file that the interrupted run was to write.")],
    data: Annotated[Path | None, typer.Option(help="Where the data lies now, if it was moved.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Go on with an interrupted run."""
    from loracomp.training.run import resume as go_on

    if (out.with_name(f"{out.name}.ckpt") / "mark.json").exists():
        raise UsageError(f"{out}: a run with --watermark; the same `train run` command goes on with it")
    with watching(as_json) as (report, stop):
        result = go_on(out, data=data, device=device, report=report, stop=stop)
    _show(result, as_json)


@app.command("many")
def many(
    manifest: Annotated[
        Path, typer.Argument(help="JSON lines, or a JSON list: name, data, kind and any setting.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    at_once: Annotated[
        int | None, typer.Option(help="Adapters at once; left out, as many as memory holds.", min=1)
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the denoiser first.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Record each step as a CUDA graph.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train many adapters at once on one base; each comes out as if it were trained alone.

    Ctrl-C finishes the step and saves; the same command goes on, and keeps what is finished.
    """
    from loracomp.training.many.run import Ways, train_many

    with watching(as_json) as (report, stop):
        ways = Ways(at_once, compiled, graph, report, stop)
        result = train_many(manifest, out, ways, device=device)
    _show_many(result, as_json)


@app.command("check")
def check(
    data: Data,
    resolution: Annotated[int, typer.Option(help="Side in pixels to train at.")] = 128,
    as_json: Json = False,
) -> None:
    """Say what a data folder holds and what is worth mending."""
    from loracomp.training.survey import survey

    found = survey(data)
    if as_json:
        emit_json(asdict(found) | {"advice": found.advice(resolution)})
        return
    for line in _survey_lines(found, resolution):
        typer.echo(line)


@app.command("settings")
def settings(as_json: Json = False) -> None:
    """List every setting with its default."""
    from loracomp.cli.screen import emit_table
    from loracomp.training.config import TrainConfig

    fields = TrainConfig.model_fields
    rows = [(key, _default(field), field.description or "") for key, field in fields.items()]
    if as_json:
        emit_json([dict(zip(("setting", "default", "meaning"), row, strict=True)) for row in rows])
        return
    emit_table("", ["setting", "default", "meaning"], rows)


@contextmanager
def watching(as_json: bool) -> Iterator[tuple[Report, Callable[[], bool]]]:
    """A reporter on stderr, and whether Ctrl-C was pressed."""
    from loracomp.training.interrupt import ctrl_c
    from loracomp.training.progress import reporter

    with reporter(sys.stderr, as_json) as report:
        note = {"event": "interrupt", "text": "finishing this step, then saving; Ctrl-C again stops now"}
        with ctrl_c(lambda: report(note)) as stop:
            yield report, stop


def _show(result: Trained, as_json: bool) -> None:
    if as_json:
        emit_json(result.summary)
        return
    facts = result.summary
    size = facts["bytes"] / 1e6
    typer.echo(f"{result.out}: {facts['layers']} layers, {size:.2f} MB, loss {result.loss:.4f}")
    if result.grid:
        typer.echo(f"{result.grid}: samples; the first column is the base alone")


def _show_many(result: dict[str, Any], as_json: bool) -> None:
    from loracomp.errors import TrainingError

    if as_json:
        emit_json(result)
    else:
        speed = f"{result['adapters_per_minute']:.1f} adapters a minute"
        typer.echo(
            f"{result['out']}: {result['done']} of {result['adapters_in_all']} adapters, {speed}, "
            f"{result['memory'].get('total', 0) / 2**20:.0f} MiB as counted"
        )
    if failed := [row["reason"] for row in result["adapters"].values() if row["status"] == "failed"]:
        more = f" and {len(failed) - 1} more; see {result['out']}/report.json" if failed[1:] else ""
        raise TrainingError(f"{failed[0]}{more}")


def _survey_lines(found: Survey, resolution: int) -> Iterator[str]:
    yield f"{found.folder}: {found.pictures} pictures, {found.captioned} with captions"
    sizes = ", ".join(f"{width}x{height} ({count})" for (width, height), count in found.sizes[:5])
    yield f"sizes: {sizes}"
    if found.words:
        yield "captions: " + ", ".join(f"{word} ({count})" for word, count in found.words[:6])
    if found.cells:
        yield f"manifest: {found.cells} cells of subject and style"
    yield from (f"note: {line}" for line in found.advice(resolution))


def _default(field: Any) -> Any:
    return "needed" if field.is_required() else field.default
