"""``loracomp profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, emit_table, steps_bar
from loracomp.errors import BaseMismatchError

if TYPE_CHECKING:
    from loracomp.pipeline.measured import Measured


def profile(
    loras: Annotated[list[str], typer.Argument(help="Names of shipped adapters, or files.")],
    base: Annotated[
        str | None, typer.Option(help="Base to sample with: a name, folder or file; the adapters' own.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to draw; {words} stands for the trigger words; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=256, help="Pictures per prompt.")] = 2,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Denoising steps.")] = 10,
    effect: Annotated[
        bool, typer.Option("--effect", help="Measure the effect curve too, for --strength.")
    ] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Measure again what is known.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Measure what adapters do to the spectrum, and how their effect grows with their weight."""
    from loracomp.bases import BASES
    from loracomp.library import find, open_adapter
    from loracomp.loading import open_base
    from loracomp.pipeline import own_layers
    from loracomp.pipeline.profiling import profile as measure
    from loracomp.pipeline.sampling import SCENES, Setting

    files = [find(source) for source in loras]
    # Only an open base tells the layers of an architecture of its own; a known one is opened late.
    pipe = open_base(base, device=device) if base is not None and base not in BASES else None
    own = own_layers(pipe) if pipe is not None else None
    adapters = [(open_adapter(str(file), modules=own), file.parent) for file in files]
    first = adapters[0][0]
    for adapter, _ in adapters:
        if adapter.base != first.base:
            raise BaseMismatchError(adapter.name, adapter.base, first.base)
    setting = Setting(tuple(prompt or SCENES), seeds, steps)
    if pipe is None:
        pipe = open_base(base or first.base, device=device)
    found = []
    for adapter, folder in adapters:
        with steps_bar(f"profiling {adapter.name}", as_json, "run") as progress:
            known = measure(
                pipe, adapter, effect=effect, folders=[folder], anew=anew, setting=setting, progress=progress
            )
            found.append((adapter.name, known))
    if as_json:
        emit_json({"adapters": [_values(name, known) for name, known in found]})
        return
    emit_table(
        "",
        ["adapter", "frequencies", "score", "± SE", "in pictures", "± SE", "weight of half its effect"],
        [_row(name, known) for name, known in found],
    )


def _values(name: str, known: Measured) -> dict[str, Any]:
    return {
        "name": name,
        "digest": known.digest,
        "base": known.base,
        "frequency": known.frequency.to_parts() if known.frequency else None,
        "effect": known.effect.to_parts() if known.effect else None,
        "setting": known.setting,
    }


def _row(name: str, known: Measured) -> tuple[str, ...]:
    f, e = known.frequency, known.effect
    numbers = [f.score, f.error, f.picture, f.picture_error] if f else []
    half = f"{e.weight(0.5):.2f}" if e else "–"
    return (name, f.band if f else "–", *(f"{value:+.4f}" for value in numbers), half)
