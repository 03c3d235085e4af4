"""``loracomp train gate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.fusion.gated import Form

TERMS = ("base", "lora", "cross", "time", "competition", "solo")


def gate(
    adapters: Annotated[
        Path, typer.Option(help="Corpus folder that `python -m loracomp.training.corpus` made.")
    ],
    base: Annotated[str, typer.Option(help="Name, diffusers folder or checkpoint.")] = "glyph",
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("gate.safetensors"),
    minutes: Annotated[float, typer.Option(help="Minutes of training at most.")] = 15.0,
    steps: Annotated[int, typer.Option(help="Optimizer steps at most.")] = 20_000,
    batch: Annotated[int, typer.Option(help="Samples times adapters in a step.")] = 384,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    counts: Annotated[str, typer.Option(help="Numbers of adapters to sample.")] = "1,2,3,4,5",
    version: Annotated[str, typer.Option(help="ours, or AutoLoRA's P or T.")] = "ours",
    without: Annotated[
        list[str] | None, typer.Option(help=f"Term to leave out, of {', '.join(TERMS)}; repeatable.")
    ] = None,
    global_rank: Annotated[
        int | None, typer.Option(help="Rank of the global adapter made of all; 0 for none.")
    ] = None,
    hinge: Annotated[float, typer.Option(help="Weight of the published hinge; 0 for none.")] = 0.1,
    margin: Annotated[float, typer.Option(help="Its margin.")] = 0.5,
    solo: Annotated[float, typer.Option(help="Share of samples that ask for one adapter alone.")] = 0.25,
    scenes: Annotated[int, typer.Option(help="Pictures of several concepts to render.")] = 3000,
    every: Annotated[int, typer.Option(help="Steps between measurements on unseen concepts.")] = 500,
    measured: Annotated[int, typer.Option(help="Samples times adapters of a measurement and N.")] = 384,
    graph: Annotated[bool, typer.Option("--graph", help="Record steps as CUDA graphs.")] = False,
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.")] = 0,
    artwork: Annotated[Path, typer.Option(help="Folder of icons.json.xz.")] = Path(".data"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Train the gate of `--method gated` on adapters whose concepts are known.

    Ctrl-C saves; the same command goes on. No picture or concept of GlyphBench is used.
    """
    from loracomp.cli.train import watching
    from loracomp.loading import open_base
    from loracomp.training.gate.settings import Settings
    from loracomp.training.gate.train import train_gate

    settings = Settings(
        _form(version, without or [], global_rank), steps, minutes, batch, lr, _counts(counts), solo, hinge,
        margin, scenes=scenes, every=every, measured=measured, seed=seed,
    )  # fmt: skip
    pipe = open_base(base, dtype="fp32", device=device)
    if graph and pipe.device.type != "cuda":
        raise UsageError(f"--graph needs a CUDA device, not {pipe.device.type}; leave it out")
    with watching(as_json) as (report, stop):
        found = train_gate(
            adapters, out, settings, pipe=pipe, artwork=artwork, report=report, stop=stop, graph=graph
        )
    if as_json:
        emit_json(found)
        return
    typer.echo(f"{out}: {found['steps']} steps, {found['seconds']:.0f} s, {found['bytes'] / 1e6:.2f} MB")
    for count, row in found["unseen"].items():
        typer.echo(f"unseen concepts, N = {count}: error {row['less']:.2f} % below the sum's")


def _form(version: str, without: list[str], global_rank: int | None) -> Form:
    from loracomp.fusion.gated import Form

    if unknown := [term for term in without if term not in TERMS]:
        raise UsageError(f"--without {unknown[0]}: there are {', '.join(TERMS)}")
    changes: dict[str, Any] = {term: 0 if term == "time" else False for term in without}
    if global_rank is not None:
        changes["global_rank"] = global_rank
    if version == "ours":
        return Form.ours(**changes)
    if version not in ("P", "T"):
        raise UsageError(f"--version {version}: there are ours, P and T")
    return replace(Form.published("P" if version == "P" else "T"), **changes)


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--counts {text}: write numbers with commas, for example 1,2,3") from None
