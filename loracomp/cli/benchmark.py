"""``loracomp benchmark compose``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, steps_bar
from loracomp.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from loracomp.adapter import Adapter
    from loracomp.evaluation.artwork import Names
    from loracomp.evaluation.bench import Plan
    from loracomp.evaluation.ledger import Ledger
    from loracomp.evaluation.report import Section
    from loracomp.evaluation.roster import Roster

app = typer.Typer(help="Measure composition against the artists' pictures.", no_args_is_help=True)
Protocols = Annotated[
    list[str] | None,
    typer.Option("--protocol", help="1+1, 2+1, 1+2, 1+3 or 2+3 (subjects + others), or all; repeatable."),
]


@app.callback()
def group() -> None:
    """Measure composition against the artists' pictures."""


@app.command("compose")
def compose(
    adapters: Annotated[
        Path | None, typer.Option(help="Folder of adapters; the shipped ones by default.")
    ] = None,
    protocol: Protocols = None,
    pairs: Annotated[int, typer.Option(min=1, max=192, help="Cells per protocol; 192 is all of them.")] = 24,
    steps: Annotated[list[int] | None, typer.Option(help="Denoising steps; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=64, help="Pictures per cell and row.")] = 2,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="NAME[:OPTION=VALUE,…], file-NAME for a merge of files; repeatable; all live by default.",
        ),
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(help="NAME_OR_FILE: on in every row, at its own steps and guidance."),
    ] = None,
    weight: Annotated[float, typer.Option(help="Strength of every adapter.")] = 1.0,
    split: Annotated[str, typer.Option(help="Subjects: test, validation (for tuning) or all.")] = "all",
    base: Annotated[str, typer.Option(help="Name or folder of a glyph base.")] = "glyph",
    judge: Annotated[str, typer.Option(help="glyph, glyph:FOLDER or openclip:MODEL/WEIGHTS.")] = "glyph",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; a run in it is gone on with.")] = Path(
        "glyphbench"
    ),
    part: Annotated[
        str | None,
        typer.Option(help="K/N: only draw every N-th cell, from the K-th; N processes share one --out."),
    ] = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="Draw nothing: write the tables of what --out holds already.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compose unseen subjects with unseen styles by every method, and score them."""
    from loracomp.evaluation.artwork import read_names
    from loracomp.evaluation.bench import Plan
    from loracomp.evaluation.ledger import Ledger
    from loracomp.evaluation.roster import read_roster
    from loracomp.evaluation.ways import way
    from loracomp.fusion.gated import usable
    from loracomp.library import SHIPPED, open_accelerator

    names = read_names()
    roster = read_roster(adapters or SHIPPED, names)
    for name in method or ():
        way(name)
    methods = tuple(method or usable())
    if not all(1 <= count <= 1000 for count in steps or ()):
        raise UsageError("--steps is outside 1 … 1000")
    fast = open_accelerator(accelerator, "glyph") if accelerator else None
    plan = Plan(
        _cells(protocol or ["1+1"], names, roster, pairs, split),
        methods,
        tuple(steps or _steps(fast)),
        seeds,
        weight,
    )
    if tables:
        _write(plan, Ledger.reopen(out), as_json)
        return
    settings = {"base": base, "judge": judge, "split": split, "seeds": seeds, "weight": weight}
    share = _share(plan, part) if part else plan
    ledger = _run(share, roster, out, settings, {"dtype": dtype, "device": device}, as_json, fast)
    if part:
        typer.echo(f"{out}: part {part} is done; run once more without --part for the tables", err=True)
    else:
        _write(plan, ledger, as_json)


def _steps(fast: Adapter | None) -> tuple[int, ...]:
    """The protocol's steps, or the accelerator's."""
    told = fast.accelerator if fast else None
    return (told.steps,) if told else (25,)


def _share(plan: Plan, part: str) -> Plan:
    """The plan with every N-th cell only: all rows of a cell stay together, so that times compare."""
    first, _, count = part.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UsageError(f"--part {part}: write K/N with K from 1 to N, for example 1/4")
    return replace(plan, cells=plan.cells[int(first) - 1 :: int(count)])


def _cells(protocols: list[str], names: Names, roster: Roster, pairs: int, split: str) -> list[Any]:
    """The cells, the protocols taking turns, so that a run that is cut short has some of each."""
    from loracomp.evaluation.cells import PROTOCOLS, choose

    wanted = PROTOCOLS if "all" in protocols else tuple(dict.fromkeys(protocols))
    found = {name: choose(name, names, roster.has, pairs, split) for name in wanted}
    for name, cells in found.items():
        if not cells:
            typer.echo(f"{name}: no cells, since adapters for it are missing", err=True)
    if not any(found.values()):
        raise ResourceError(
            "no cell can be composed: the folder needs adapters of an unseen subject and of an unseen style "
            "(see loracomp/assets/bench/names.json); name another one with --adapters"
        )
    turns = zip_longest(*found.values())
    return [cell for turn in turns for cell in turn if cell is not None]


def _run(
    plan: Plan,
    roster: Roster,
    out: Path,
    settings: dict[str, Any],
    place: dict[str, str],
    as_json: bool,
    fast: Adapter | None = None,
) -> Ledger:
    """Draws and scores what is not done yet."""
    from loracomp.bases import get_base
    from loracomp.evaluation.artwork import open_artwork
    from loracomp.evaluation.bench import painter, run
    from loracomp.evaluation.judge import open_judge
    from loracomp.evaluation.ledger import Ledger
    from loracomp.loading import defaults, open_base
    from loracomp.training.glyph.filters import FILTERS

    row = get_base("glyph")
    known_settings = defaults(settings["base"], row)
    drawing = {key: known_settings[key] for key in ("guidance", "guidance_rescale")}
    if fast and fast.accelerator:
        drawing = {"guidance": fast.accelerator.guidance, "guidance_rescale": 0.0}
        settings = settings | {"accelerator": fast.digest[:16]}
    artwork = open_artwork(FILTERS)
    known = _vocabulary(roster.names) if not settings["judge"].startswith("glyph") else None
    pipe = open_base(settings["base"], **place)
    where = str(pipe.device)
    watching = open_judge(settings["judge"], known, where)
    used = {part for cell in plan.cells for part in cell.parts}
    digests = {"/".join(part): roster.adapter(part).digest[:16] for part in sorted(used)}
    dtype_name = str(pipe.dtype).removeprefix("torch.")
    about = settings | drawing | {"dtype": dtype_name, "device": pipe.device.type}
    ledger = Ledger(out, about, digests)
    paint = painter(pipe, where, side=row.resolution, accelerator=fast, **drawing)
    paint("a red apple emoji", [], "merge", 1.0, 2, plan.seeds)
    with steps_bar("benchmark", as_json) as on_unit:
        run(plan, roster, artwork, watching, paint, ledger, on_unit)
    return ledger


def _vocabulary(names: Names) -> Any:
    """The benchmark's own names, for judges that bring none."""
    from loracomp.evaluation.judge import Vocabulary

    return Vocabulary(
        {slug: f"a {name} emoji" for slug, name in names.subjects.items()},
        {name: look.phrase for name, look in names.looks.items()},
        {color: f"{color} background" for color in names.colours},
    )


def _write(plan: Plan, ledger: Ledger, as_json: bool) -> None:
    """Writes results.json, table.md and a sheet per section, and prints the table or the JSON."""
    import json
    from importlib.metadata import version

    from loracomp.evaluation import report, table

    made: dict[str, Any] = {name: version(name) for name in ("loracomp", "torch", "diffusers")}
    made |= {"command": shlex.join(["loracomp", *sys.argv[1:]]), "adapters": ledger.adapters}
    found: list[Section] = report.sections(plan, ledger.records)
    values = report.to_json(found, ledger.settings) | {"made": made}
    text = table.markdown(found, ledger.settings, made["command"])
    (ledger.folder / "results.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (ledger.folder / "table.md").write_text(text, encoding="utf-8")
    for part in found:
        table.sheet(plan, ledger, part).save(ledger.folder / f"sheet-{part.protocol}-{part.steps}.png")
    if as_json:
        emit_json(values)
    else:
        typer.echo(text)
