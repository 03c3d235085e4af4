"""``loracomp base list``, ``loracomp base show`` and ``loracomp base check``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, emit_table, steps_bar
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.evaluation.base_report import Checked

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


@app.command("check")
def check_base(
    source: Annotated[str, typer.Argument(help="Diffusers folder, checkpoint file, hub id or name.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the report and the contact sheet.")
    ] = Path("base-check"),
    steps: Annotated[int, typer.Option(min=2, max=100, help="Denoising steps of each run.")] = 4,
    side: Annotated[
        int | None, typer.Option("--size", help="Side in pixels; the base's own, at most 256 on a CPU.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of timing.")] = 3,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Check on your own base model that composing is exact, and how fast it is.

    Draws with synthetic adapters, ours and diffusers' own way, and compares. Exit code 0: all laws hold;
    1: one does not.
    """
    from loracomp.loading import open_base

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file; --out names a folder")
    pipe = open_base(source, dtype=dtype, device=device)
    checked = _checked(pipe, source, out, steps, _side(pipe, side), rounds, as_json)
    if as_json:
        emit_json(checked.to_dict())
    else:
        _print_check(checked, out)
    if not checked.holds:
        raise typer.Exit(1)


def _checked(pipe: Any, source: str, out: Path, steps: int, side: int, rounds: int, quiet: bool) -> Checked:
    from loracomp.bases import BASES
    from loracomp.evaluation.base_report import Checked, setting_of, write
    from loracomp.evaluation.fidelity import check
    from loracomp.evaluation.pace import measure
    from loracomp.evaluation.specimen import Bench
    from loracomp.pipeline import base_of

    base = base_of(pipe)
    guidance = BASES[base].guidance if base in BASES else 4.0
    bench = Bench(pipe, steps=steps, side=side, guidance=guidance)
    with steps_bar("checking", quiet, "law") as progress:
        laws, trial = check(bench, progress)
    with steps_bar("timing", quiet, "round") as progress:
        paces = measure(bench, rounds=rounds, on_round=progress)
    checked = Checked(source, base, setting_of(pipe, side, steps), tuple(laws), tuple(paces))
    try:
        write(checked, trial.pictures, out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return checked


def _side(pipe: Any, side: int | None) -> int:
    """The side in pixels: as given, or the base's own, kept small where there is no GPU."""
    from loracomp.pipeline import denoiser_of

    if side is None:
        config: Any = denoiser_of(pipe)[1].config
        own = pipe.vae_scale_factor * int(getattr(config, "sample_size", None) or pipe.default_sample_size)
        device = getattr(pipe, "_execution_device", pipe.device)
        return own if device.type == "cuda" else min(own, 256)
    if side % 8 or not 8 <= side <= 4096:
        raise UsageError(f"--size {side} is not a multiple of 8 between 8 and 4096")
    return side


def _print_check(checked: Checked, out: Path) -> None:
    rows = [
        ("yes" if law.holds else "NO", law.name, "" if law.error is None else f"{law.error:.1e}", law.note)
        for law in checked.laws
    ]
    emit_table("", ["holds", "law", "relative difference", ""], rows)
    steps = [(pace.adapters, f"{pace.over_base:.2f}", f"{pace.over_peft:.2f}") for pace in checked.paces]
    typer.echo()
    emit_table("", ["adapters", "step over no adapter", "step over set_adapters"], steps)
    typer.echo(f"{out / 'report.md'}, report.json, sheet.png", err=True)
