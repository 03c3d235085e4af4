"""``loracomp watermark``: verify, attribute and inspect read marks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, emit_table
from loracomp.cli.watermark import CodecFile, KeyFile, app, open_codec, read_registry
from loracomp.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from loracomp.watermark.attribution import Part
    from loracomp.watermark.calibration import Calibration
    from loracomp.watermark.codec import Codec
    from loracomp.watermark.manifest import Proof
    from loracomp.watermark.pictures import Pictures
    from loracomp.watermark.verdict import Verdict

Images = Annotated[list[Path], typer.Argument(help="Picture files; the more, the surer.")]
Base = Annotated[str, typer.Option(help="Base whose shipped codec and calibration are used.")]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", help="A calibration; the shipped one if left out.")
]


@app.command("verify")
def verify(
    images: Images,
    key: KeyFile,
    adapter: Annotated[
        Path | None, typer.Option(help="The LoRA file itself; its manifest is checked with the key.")
    ] = None,
    codec: CodecFile = None,
    calibration: CalibrationFile = None,
    alpha: Annotated[float, typer.Option(help="Level of the decision, below 0.5.")] = 1e-3,
    base: Base = "glyph",
    as_json: Json = False,
) -> None:
    """Say whether pictures carry a key's mark: verified, no evidence, or inconclusive.

    Exit code 0 verified, 1 no evidence, 3 inconclusive, 4 a bad file or manifest, 5 no calibration.
    """
    from loracomp.watermark import manifest
    from loracomp.watermark.keyfile import read_key
    from loracomp.watermark.pictures import read_pictures
    from loracomp.watermark.signing import public_key
    from loracomp.watermark.verdict import EXIT_CODES
    from loracomp.watermark.verdict import verify as judge

    if not 0 < alpha < 0.5:
        raise UsageError(f"--alpha {alpha:g}: must lie between 0 and 0.5")
    secret = read_key(key)
    opened = open_codec(codec, base)
    known = open_calibration(calibration, base, opened)
    proof = manifest.check_file(adapter, public_key(secret.signing_seed)) if adapter else None
    own = proof is not None and proof.status == "valid" and proof.commitment == secret.commitment
    found = read_pictures(images, opened.shape.pixels)
    gain = float(proof.manifest.get("gain", 1.0)) if proof and own else 1.0
    verdict = judge(
        opened.read(found.pixels), secret, known, alpha=alpha, gain=gain, keyed=opened.keyed,
        weights_proven=own, small=found.small,
    )  # fmt: skip
    bad = proof is not None and proof.status in manifest.BAD
    if as_json:
        facts = verdict.to_dict() | {
            "manifest": proof.to_dict() if proof else None,
            "files": list(found.names),
        }
        emit_json(facts | _digests(opened, known) | {"duplicates": found.duplicates, "notes": found.notes})
    else:
        _show_verdict(verdict, found, proof, secret.lora)
    sys.exit(4 if bad else EXIT_CODES[verdict.decision])


def _digests(codec: Codec, calibration: Calibration) -> dict[str, str]:
    from loracomp import __version__

    return {"extractor": codec.digest, "calibration": calibration.digest, "loracomp": __version__}


def open_calibration(path: Path | None, base: str, codec: Codec) -> Calibration:
    """The calibration in a file, or the one that ships; raises :class:`ResourceError` unless it fits."""
    from loracomp.watermark.calibration import load_calibration
    from loracomp.watermark.codec import SHIPPED

    found = load_calibration(path or SHIPPED / f"{base}.calibration.safetensors")
    if found.extractor != codec.digest:
        raise ResourceError(
            f"{path or base}: calibration of another codec; make one with `loracomp watermark calibrate`"
        )
    return found


def _show_verdict(verdict: Verdict, found: Pictures, proof: Proof | None, lora: str) -> None:
    score, own = verdict.score, verdict.empirical
    typer.echo(f"{verdict.decision.upper()}: {'; '.join(verdict.reasons)}")
    rows = [
        ("LoRA", lora),
        ("images", f"{verdict.images} distinct, {len(found.duplicates)} repeated"),
        ("bits that match", f"{score.matches} of {score.bits}"),
        ("score", f"{score.cosine:.4f}"),
        ("p over random keys", f"{verdict.p_random_key:.3g} (exact)"),
        ("p of unmarked images", "-" if own is None else _own(own)),
        ("strength", f"{score.strength.value:.2f} ({score.strength.low:.2f} to {score.strength.high:.2f})"),
        ("manifest", "not asked for" if proof is None else _proof(proof)),
    ]
    emit_table("", ["", ""], rows)
    for note in found.notes:
        typer.echo(f"note: {note}")


def _own(own: Any) -> str:
    kind = "modelled tail" if own.modelled else "counted"
    return f"{own.p:.3g} ({kind}; worst population: {own.population}, {own.sets} sets)"


def _proof(proof: Proof) -> str:
    brought = "; the key inside the file proves nothing" if proof.embedded_key else ""
    return {
        "valid": "valid: signed by this key, for these tensors",
        "untrusted": f"signed by {proof.signer}, but no key to trust was given (--trust)",
        "other tensors": "signed by this key, but for other tensors",
        "forged": "not signed by this key",
        "damaged": "damaged",
        "none": "none; pictures alone decide",
    }[proof.status] + brought


@app.command("attribute")
def attribute(
    images: Images,
    registry: Annotated[Path, typer.Option(help="Folder of issued keys, NAME.key each.")],
    codec: CodecFile = None,
    calibration: CalibrationFile = None,
    rate: Annotated[float, typer.Option(help="False discovery rate.")] = 0.01,
    base: Base = "glyph",
    as_json: Json = False,
) -> None:
    """Name which of several marked LoRAs made pictures. Exit code 0 if any is named, 1 if none."""
    from loracomp.watermark.attribution import attribute as split
    from loracomp.watermark.pictures import read_pictures

    keys = read_registry(registry)
    opened = open_codec(codec, base)
    if not opened.keyed:
        raise UsageError("attribution needs a keyed codec: fixed carriers of two LoRAs lie on each other")
    known = open_calibration(calibration, base, opened)
    found = read_pictures(images, opened.shape.pixels)
    parts = split(opened.read(found.pixels), keys, known, rate=rate)
    if as_json:
        rows = [part.to_dict() for part in parts]
        emit_json({"loras": rows, "images": len(found.names), "rate": rate} | _digests(opened, known))
    else:
        emit_table(
            "",
            ["LoRA", "user", "named", "p", "p (FDR)", "p (family)", "strength", "share"],
            [_part_row(part) for part in parts],
        )
    sys.exit(0 if any(part.named for part in parts) else 1)


def _part_row(part: Part) -> tuple[str, ...]:
    chances = (f"{value:.3g}" for value in (part.p, part.p_fdr, part.p_family))
    named = "yes" if part.named else "-"
    return (part.lora, part.user, named, *chances, f"{part.score.strength.value:.2f}", f"{part.share:.0%}")


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file.")],
    trust: Annotated[Path | None, typer.Option(help="A .pub file that you have from its owner.")] = None,
    detached: Annotated[Path | None, typer.Option(help="A detached .manifest.json to check instead.")] = None,
    log: Annotated[Path | None, typer.Option(help="Log of commitments to look the file's up in.")] = None,
    as_json: Json = False,
) -> None:
    """Check a LoRA's signed manifest, and those of its parents.

    Exit code 0 valid, 1 none, 3 signed but no key to trust was given, 4 forged, changed or damaged.
    """
    from loracomp.watermark.keyfile import read_public
    from loracomp.watermark.ledger import logged
    from loracomp.watermark.manifest import BAD, check_file

    proof = check_file(file, read_public(trust) if trust else None, detached)
    line = logged(log, proof.commitment) if log and proof.commitment else None
    code = 4 if proof.status in BAD else {"valid": 0, "none": 1}.get(proof.status, 3)
    if as_json:
        emit_json(proof.to_dict() | {"logged": line.logged if line else None})
    else:
        typer.echo(f"{file}: {_proof(proof)}")
        for parent in proof.parents:
            typer.echo(
                f"parent {parent.hash} ({parent.lora or 'unnamed'}): {parent.status}, for its own tensors"
            )
        if log:
            typer.echo(f"commitment logged {line.logged}" if line else "commitment not in the log")
    sys.exit(code)
