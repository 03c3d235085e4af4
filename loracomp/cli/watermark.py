"""``loracomp watermark``: keygen, embed and vae make marks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, steps_bar
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loracomp.adapter import Adapter
    from loracomp.watermark.codec import Codec
    from loracomp.watermark.keys import Key

app = typer.Typer(help="Mark LoRAs and verify whose pictures they drew.", no_args_is_help=True)

KeyFile = Annotated[Path, typer.Option("--key", help="A key file from keygen; readable by you alone.")]
CodecFile = Annotated[Path | None, typer.Option("--codec", help="A codec; the shipped one if left out.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


@app.command("keygen")
def keygen(
    out: Annotated[Path, typer.Option("--out", "-o", help="The key file to write, with mode 0600.")],
    owner: Annotated[Path | None, typer.Option(help="Your owner's key; left out, one is made.")] = None,
    lora: Annotated[str, typer.Option(help="Name of the LoRA that the key is for.")] = "",
    user: Annotated[str, typer.Option(help="Whom this copy is for; empty for yourself.")] = "",
    bits: Annotated[int, typer.Option(help="Length of the message.")] = 32,
    registry: Annotated[
        Path | None, typer.Option(help="Folder of keys issued before, to keep a distance from.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration; keys that fit unmarked pictures are not issued.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Log that the commitment is appended to.")] = None,
    as_json: Json = False,
) -> None:
    """Make an owner's key, or issue the key of one LoRA from it.

    Without --owner the file is your owner's key: keep it at home, it is all that is ever needed again.
    With --owner and --lora it is the key of that LoRA, with NAME.pub beside it for others.
    """
    from loracomp.watermark.keyfile import read_owner, write_key, write_owner, write_public
    from loracomp.watermark.keys import OwnerKey
    from loracomp.watermark.ledger import commit
    from loracomp.watermark.signing import print_of, public_key

    if owner is None:
        if lora or user:
            raise UsageError("--lora and --user issue a key from your owner's key; give it with --owner")
        write_owner(out, OwnerKey.create())
        facts: dict[str, Any] = {"file": str(out), "kind": "owner"}
        emit_json(facts) if as_json else typer.echo(
            f"{out}: your owner's key; back it up and keep it private"
        )
        return
    issued = registry is not None and any(registry.glob("*.key"))
    others = read_registry(registry) if registry is not None and issued else []
    others = [key for key in others if (key.lora, key.user) != (lora, user)]
    key = read_owner(owner).issue(lora, user, bits, others, _screening(calibration))
    write_key(out, key)
    public = write_public(out.with_suffix(".pub"), public_key(key.signing_seed), key)
    line = commit(log, key) if log else None
    facts = {
        "file": str(out), "kind": "issued", "lora": lora, "user": user, "bits": bits, "counter": key.counter,
        "commitment": key.commitment, "public": str(public), "logged": line.logged if line else None,
        "signer": print_of(public_key(key.signing_seed)), "screened": calibration is not None,
    }  # fmt: skip
    if as_json:
        emit_json(facts)
        return
    typer.echo(f"{out}: the key of {lora}{f' for {user}' if user else ''}, draw {key.counter}")
    typer.echo(f"{public}: for others, to check manifests with")
    typer.echo(f"commitment {key.commitment}" + (f", logged {line.logged}" if line else ""))
    if not line:
        typer.echo("log it where others can date it before you publish the LoRA: --log FILE")


def _screening(calibration: Path | None) -> Any:
    if calibration is None:
        return None
    from loracomp.watermark.calibration import load_calibration
    from loracomp.watermark.screening import screen

    found = load_calibration(calibration)
    return lambda key: screen(found, key)


def read_registry(folder: Path) -> list[Key]:
    """All issued keys of a folder; raises :class:`UsageError` where there is none."""
    from loracomp.watermark.keyfile import is_owner, read_key

    files = sorted(file for file in folder.glob("*.key") if not is_owner(file)) if folder.is_dir() else []
    if not files:
        raise UsageError(
            f"{folder}: no key files (NAME.key) in it; issue them with keygen --out {folder}/NAME.key"
        )
    return [read_key(file) for file in files]


def open_codec(path: Path | None, base: str, pooled: bool = False) -> Codec:
    """The codec in a file, or the one that ships for a base."""
    from loracomp.watermark.codec import load_codec, shipped_codec

    return load_codec(path or shipped_codec(base, pooled))


def open_for(texts: Sequence[str], base: str, device: str) -> tuple[Any, list[Adapter]]:
    """A base and adapters of it, as ``train run`` makes them for a base of one's own too."""
    from loracomp.formats import load
    from loracomp.library import find
    from loracomp.loading import open_base
    from loracomp.training.result import Origin
    from loracomp.training.wiring import row_of

    if not base:
        found = [load(find(text)) for text in texts]
        return open_base(found[0].base, dtype="fp32", device=device), found
    pipe = open_base(base, dtype="fp32", device=device)
    origin = Origin.of(pipe, row_of(pipe))
    own = None if origin.name == origin.row.name else origin.shapes
    return pipe, [load(find(text), modules=own) for text in texts]


@app.command("embed")
def embed(
    adapter: Annotated[str, typer.Argument(help="LoRA file or shipped adapter; it stays as it is.")],
    key: KeyFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The marked LoRA to write.")],
    data: Annotated[
        Path | None, typer.Option(help="Pictures that it was trained on; left out, it draws its own.")
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option("--shadow", help="Another LoRA that the mark has to stand; repeatable."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A mark setting, as in steps=800.")
    ] = None,
    codec: CodecFile = None,
    base: Annotated[str, typer.Option(help="Where the base lies, if it is none of the known ones.")] = "",
    seed: Annotated[int, typer.Option(help="Decides what is drawn and the order.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Put a key's mark into a LoRA, and sign the file. Ctrl-C saves; the same command goes on."""
    from loracomp.training.config import parse_settings
    from loracomp.training.interrupt import ctrl_c
    from loracomp.training.progress import reporter
    from loracomp.training.watermark.run import embed as mark
    from loracomp.training.watermark.session import fitting_shadows
    from loracomp.training.watermark.settings import mark_settings
    from loracomp.watermark.keyfile import read_key

    secret = read_key(key)
    pipe, (twin, *others) = open_for([adapter, *(shadow or [])], base, device)
    opened = open_codec(codec, twin.base)
    shadows = fitting_shadows(others, twin)
    note = {"event": "interrupt", "text": "finishing this step, then saving; Ctrl-C again stops now"}
    with reporter(sys.stderr, as_json) as report, ctrl_c(lambda: report(note)) as stop:
        result = mark(
            twin, out, secret, opened, mark_settings(parse_settings(setting or [])), base=base, data=data,
            pipe=pipe, shadows=shadows, device=device, seed=seed, report=report, stop=stop,
        )  # fmt: skip
    if as_json:
        emit_json({**result.summary, "manifest": str(out.with_suffix(".manifest.json"))})
        return
    typer.echo(f"{out}: marked and signed, {result.summary['bytes'] / 1e6:.2f} MB, loss {result.loss:.4f}")
    typer.echo("next: `loracomp watermark attack` measures what the mark stands")


@app.command("vae")
def vae(
    key: KeyFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    base: Annotated[str, typer.Option(help="Name, diffusers folder or hub id.")] = "glyph",
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures to decode; left out, the base draws some.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time limit.")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="Steps at most.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures in a step.")] = 16,
    codec: CodecFile = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Put a key's mark into the base's decoder: everything that this decoder draws carries it."""
    from loracomp.loading import open_base
    from loracomp.training.wiring import row_of
    from loracomp.watermark.keyfile import read_key

    secret = read_key(key)
    pipe = open_base(base, dtype="fp32", device=device)
    opened = open_codec(codec, row_of(pipe).name, pooled=True)
    from loracomp.training.watermark.material import Folder
    from loracomp.training.watermark.vae import VaeRun, mark_vae

    folder = pictures or _draw_base(pipe, opened, out, as_json)
    material = Folder.read(folder, opened.shape.pixels, str(pipe.device))
    run = VaeRun(minutes=minutes, steps=steps, batch=batch)
    work = out.with_name(f"{out.name}.work")
    mark, figures = mark_vae(run, pipe.vae, opened, secret, material, work, str(pipe.device))
    mark.save(out)
    facts = {"file": str(out), "bytes": out.stat().st_size, "layers": len(mark.layers), **figures}
    if as_json:
        emit_json(facts)
        return
    read = f"bit accuracy {figures['accuracy']:.3f}, {figures['psnr']:.1f} dB"
    typer.echo(f"{out}: {len(mark.layers)} layers, {read} after {figures['steps']} steps")


def _draw_base(pipe: Any, codec: Codec, out: Path, quiet: bool) -> Path:
    from loracomp.training.watermark.drawn import draw_into
    from loracomp.training.watermark.prompts import base_prompts
    from loracomp.training.watermark.studio import Studio

    folder = out.with_name(f"{out.name}.pictures")
    prompts = base_prompts(codec.base, 64)
    settings = Studio(pipe, prompts).settings()
    with steps_bar("drawing", quiet, "picture") as progress:
        draw_into(folder, pipe, [], prompts, settings, progress=progress)
    return folder
