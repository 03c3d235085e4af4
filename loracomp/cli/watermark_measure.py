"""``loracomp watermark``: attack and calibrate measure marks and the world without them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, emit_table, steps_bar
from loracomp.cli.watermark import CodecFile, Device, KeyFile, app, open_codec, open_for
from loracomp.cli.watermark_check import Base, CalibrationFile, open_calibration
from loracomp.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from loracomp.watermark.attacks import Row
    from loracomp.watermark.nullworld import Rate

__all__ = ["app"]


@app.command("attack")
def attack(
    adapter: Annotated[Path, typer.Argument(help="The marked LoRA file.")],
    key: KeyFile,
    twin: Annotated[str, typer.Option(help="The same LoRA without the mark.")],
    name: Annotated[list[str] | None, typer.Option("--attack", help="Only this attack or kind.")] = None,
    other: Annotated[list[str] | None, typer.Option("--other", help="A LoRA to merge with.")] = None,
    copy: Annotated[list[Path] | None, typer.Option("--copy", help="Another user's copy.")] = None,
    surrogate: Annotated[
        Path | None, typer.Option(help="A codec whose extractor the attacker has gradients of.")
    ] = None,
    foreign_vae: Annotated[
        Path | None, typer.Option(help="Folder of an autoencoder that is not the base's.")
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures per cell.")] = 40,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the base's own if left out.")] = None,
    sign: Annotated[bool, typer.Option("--sign", help="Put the power curve into the manifest.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the table.")] = None,
    codec: CodecFile = None,
    calibration: CalibrationFile = None,
    base: Annotated[str, typer.Option(help="Where the base lies, if it is none of the known ones.")] = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure what a mark stands, each attack on the unmarked twin as well, and its power by strength."""
    import json

    from loracomp.training.watermark.prompts import prompts_for
    from loracomp.training.watermark.studio import Studio
    from loracomp.training.watermark.trials import attack as run
    from loracomp.watermark.codec import load_codec
    from loracomp.watermark.keyfile import read_key
    from loracomp.watermark.manifest import add_power

    secret, beside = read_key(key), other or []
    files = [str(adapter), twin, *beside, *(str(path) for path in copy or [])]
    pipe, (marked, plain, *rest) = open_for(files, base, device)
    opened = open_codec(codec, marked.base)
    known = open_calibration(calibration, marked.base, opened) if calibration else None
    studio = Studio(pipe, prompts_for(plain, images), steps=steps, side=opened.shape.pixels)
    with steps_bar("attacking", as_json, "attack") as progress:
        done = iter(range(1, 10_000))
        rows, power, gain = run(
            marked, plain, secret, opened, studio, calibration=known, names=name or (),
            others=rest[: len(beside)], copies=rest[len(beside) :],
            surrogate=load_codec(surrogate).to(studio.pipe.device) if surrogate else None,
            foreign=_autoencoder(foreign_vae, studio.pipe.device) if foreign_vae else None,
            told=lambda row: progress(next(done), 0),
        )  # fmt: skip
    report = {"rows": [row.to_dict() for row in rows], "power": power, "gain": gain}
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if sign:
        add_power(adapter, secret, power, gain)
    if as_json:
        emit_json(report)
        return
    emit_table(
        "",
        ["kind", "attack", "level", "bits right", "TPR 1e-3", "TPR 1e-6", "TPR 1e-6 of 5", "twin", "dB"],
        [_attack_row(row) for row in rows],
    )
    columns = list(power[0])
    emit_table("power by strength", columns, [[f"{row[column]:g}" for column in columns] for row in power])


def _autoencoder(folder: Path, device: Any) -> Any:
    """An autoencoder in diffusers format."""
    from diffusers import AutoencoderKL

    if not (folder / "config.json").is_file():
        raise ResourceError(f"{folder}: no config.json; --foreign-vae takes a folder in diffusers format")
    return AutoencoderKL.from_pretrained(folder).to(device)


@app.command("calibrate")
def calibrate(
    out: Annotated[Path, typer.Option("--out", "-o", help="The calibration to write.")],
    real: Annotated[Path | None, typer.Option(help="Folder of real pictures.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="An unmarked LoRA; repeatable.")
    ] = None,
    twin: Annotated[
        list[str] | None, typer.Option("--twin", help="The unmarked twin of a marked LoRA; repeatable.")
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures to draw with the base, and with the LoRAs.")] = 500,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the base's own if left out.")] = None,
    codec: CodecFile = None,
    base: Base = "glyph",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Read unmarked pictures and report how often they are taken for marked ones.

    Exit code 0 if every population keeps the promised rate, 1 if one does not.
    """
    from loracomp.library import open_adapter
    from loracomp.loading import open_base
    from loracomp.training.dataset import SUFFIXES
    from loracomp.training.watermark.trials import calibrate as run
    from loracomp.training.watermark.trials import null_report

    opened = open_codec(codec, base)
    files = sorted(f for f in real.glob("*") if f.suffix.lower() in SUFFIXES) if real else []
    if real and not files:
        raise UsageError(f"{real}: no pictures in it")
    adapters = [open_adapter(name) for name in adapter or []]
    twins = [open_adapter(name) for name in twin or []]
    pipe = open_base(base, dtype="fp32", device=device)
    with steps_bar("calibrating", as_json, "population") as progress:
        made = run(
            opened,
            pipe,
            real=files,
            adapters=adapters,
            twins=twins,
            count=images,
            steps=steps,
            progress=progress,
        )
    made.save(out)
    rows = null_report(made, bits=opened.shape.bits) if opened.keyed else []
    held = all(row.holds for row in rows)
    if as_json:
        facts = {"file": str(out), "images": len(made.coordinates), "acceptance": made.acceptance}
        emit_json(
            facts | {"populations": list(made.names), "null": [r.to_dict() for r in rows], "holds": held}
        )
    else:
        typer.echo(f"{out}: {len(made.coordinates)} unmarked images of {', '.join(made.names)}")
        emit_table(
            "false positives at 1e-3, and those of pooled bits as fair coins",
            ["population", "images", "rate", "95 % interval", "99 % key", "pooled bits", "holds"],
            [_rate_row(row) for row in rows],
        )
    sys.exit(0 if held else 1)


def _attack_row(row: Row) -> tuple[str, ...]:
    shares = (f"{value:.2f}" for value in (row.tpr_1e3, row.tpr_1e6, row.tpr5_1e6))
    ends = (f"{row.twin_accuracy:.3f}", f"{row.psnr:.1f}")
    return (row.kind, row.attack, row.level, f"{row.accuracy:.3f}", *shares, *ends)


def _rate_row(row: Rate) -> tuple[str, ...]:
    between, held = f"{row.low:.2g} to {row.high:.2g}", "yes" if row.holds else "NO"
    worst, pooled = f"{row.worst_key:.2g}", f"{row.pooled_binomial:.2g}"
    return (row.population, str(row.images), f"{row.rate:.2g}", between, worst, pooled, held)
