"""``loracomp compose``."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.explain import Explainer, told
from loracomp.cli.mixture import planned
from loracomp.cli.screen import Json, emit_json, steps_bar
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.fusion.variants import Variant
    from loracomp.recipe import Recipe, Use


def compose(
    prompt: Annotated[str, typer.Argument(help="What to draw; <lora:NAME:WEIGHT> is understood.")] = "",
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            help="NAME_OR_FILE[:WEIGHT], also with curves: NAME:0@0..0.3,1@0.3..1. Once per adapter.",
        ),
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(
            help="NAME_OR_FILE of an adapter for few steps; on throughout, sets steps and guidance."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Share of each LoRA's effect to have, by `loracomp profile --effect`; 0.5 is half."
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `loracomp methods`.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="NAME=VALUE of the method, e.g. period=0.1.")
    ] = None,
    program: Annotated[
        Path | None, typer.Option(help="JSON file with a gate program, or a list with one per image.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="weight=NAME:0,0.5,1 or method=merge,switch: one image each, from the same seed."),
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE.png: the adapter acts where the picture is white.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="NAME=LEFT,TOP,RIGHT,BOTTOM: it acts there; shares of the image or pixels."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Name, diffusers folder, checkpoint or hub id.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm++, … ; the base's own.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    guidance_rescale: Annotated[float | None, typer.Option(help="In [0, 1].")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image; random if left out.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT or SIDE in pixels.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images to draw together.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    offload: Annotated[str, typer.Option(help="none, model or sequential (GPU only).")] = "none",
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write; -1, -2, … for a batch.")] = Path(
        "loracomp.png"
    ),
    repeat: Annotated[
        Path | None, typer.Option("--from", help="Repeat the composition recorded in this image.")
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(help="With --method gated: write PREFIX-layers.png, -maps.png and -table.json."),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Choose the adapters from --index.")] = False,
    auto_strict: Annotated[
        bool, typer.Option("--auto-strict", help="As --auto, but refuse where none helps (exit code 1).")
    ] = False,
    index: Annotated[Path, typer.Option(help="Index that --auto chooses from.")] = Path("loracomp-index"),
    as_json: Json = False,
) -> None:
    """Draw an image with several LoRAs."""
    started = time.monotonic()
    _writable(out)
    choice: dict[str, Any] = {}
    if auto or auto_strict:
        from loracomp.cli.auto import chosen

        if repeat:
            raise UsageError("--from repeats an image with its adapters; leave out --auto")
        prompt, lora, found, choice = chosen(
            prompt, lora or [], index, base or "glyph", strict=auto_strict, quiet=as_json
        )
        method = method or found
    choices = {
        "method": method, "negative": negative, "scheduler": scheduler, "steps": steps,
        "guidance": guidance, "guidance_rescale": guidance_rescale, "seed": seed, "batch": batch,
        "options": method_options(option) if option else None, **_size(size),
    }  # fmt: skip
    said = {"vary": vary, "mask": mask, "box": box, "program": program, "accelerator": accelerator}
    variants: tuple[Variant, ...] = ()
    if repeat:
        given = choices | said | {"prompt": prompt, "lora": lora, "base": base, "strength": strength}
        recipe = _repeated(repeat, given, dtype, device)
    else:
        where = {"dtype": dtype, "device": device}
        recipe, variants = planned(prompt, lora or [], said, base or "glyph", choices | where)
    from loracomp.drawing import draw, redraw, weighed
    from loracomp.recipe import save_image

    if strength is not None and not repeat:
        recipe = weighed(recipe, strength)
    explainer = _explainer(explain, recipe)
    with steps_bar("composing", as_json) as on_step:
        drawn = (redraw if repeat else draw)(
            recipe, offload=offload, on_step=on_step, variants=variants,
            on_attach=explainer.attached if explainer else None,
        )  # fmt: skip
    paths = _paths(out, len(drawn))
    for path, (image, used) in zip(paths, drawn, strict=True):
        save_image(image, path, used)
    more = {"auto": choice} if choice else {}
    if explainer:
        more["explained"] = explainer.write(drawn, lambda other: draw(other, offload=offload)[0][0])
    _report(paths, [used for _, used in drawn], time.monotonic() - started, as_json, more)


def _explainer(prefix: Path | None, recipe: Recipe) -> Explainer | None:
    if prefix is None:
        return None
    if recipe.batch > 1:
        raise UsageError("--explain is about one picture; leave out --batch and --vary")
    _writable(prefix.with_name(f"{prefix.name}-maps.png"))
    return Explainer(prefix)


def _repeated(image: Path, choices: dict[str, Any], dtype: str, device: str) -> Recipe:
    """The recipe in the image; nothing but where it runs may be changed."""
    from loracomp.recipe import read_recipe

    given = [name for name, value in choices.items() if value]
    if given:
        raise UsageError(f"--from repeats an image as it was; leave out {', '.join(sorted(given))}")
    recipe = read_recipe(image)
    moved = {name: value for name, value in (("dtype", dtype), ("device", device)) if value != "auto"}
    return replace(recipe, **moved)  # type: ignore[arg-type]


def method_options(pairs: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs as keyword options, values read as JSON where they are."""
    import json

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--option {pair}: write NAME=VALUE, for example period=0.1")
    return {name: value(text) for name, _, text in (pair.partition("=") for pair in pairs)}


def _size(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    width, _, height = text.lower().partition("x")
    try:
        return {"width": int(width), "height": int(height or width)}
    except ValueError as error:
        raise UsageError(f"--size {text}: write WIDTHxHEIGHT, for example 128x128") from error


def _writable(out: Path) -> None:
    """Finds out before the work whether the result can be written."""
    import os

    folder = out.parent
    if out.is_dir():
        raise UsageError(f"{out}: a folder; --out names the image file")
    if not folder.is_dir():
        raise UsageError(f"{out}: the folder {folder} does not exist; create it or choose another --out")
    if not os.access(folder, os.W_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise UsageError(f"{out}: cannot be written; choose another --out")


def _paths(out: Path, count: int) -> list[Path]:
    out = out if out.suffix.lower() == ".png" else out.with_name(out.name + ".png")
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{n + 1}") for n in range(count)]


def _report(
    paths: list[Path], recipes: list[Recipe], seconds: float, as_json: bool, more: dict[str, Any]
) -> None:
    if as_json:
        images = [{"file": str(p), "recipe": asdict(r)} for p, r in zip(paths, recipes, strict=True)]
        emit_json({"images": images, "seconds": round(seconds, 2), **more})
        return
    for line in told(more["explained"]) if "explained" in more else ():
        typer.echo(line, err=True)
    recipe = recipes[0]
    parts = " + ".join(_told(use) for use in recipe.uses) or "no adapter"
    for path in paths:
        typer.echo(path)
    if len(recipe.programs) > 1:
        for path, used in zip(paths, recipes, strict=True):
            strengths = " + ".join(f"{use.name} {use.weight:g}" for use in used.uses)
            typer.echo(f"{path.name}: {strengths}, {used.method}", err=True)
        parts, method = f"{len(paths)} mixtures", "one batch"
    else:
        method = recipe.method
    typer.echo(
        f"{parts}, {method}, {recipe.base}, {recipe.steps} steps, seed {recipe.seed}, {seconds:.1f} s",
        err=True,
    )


def _told(use: Use) -> str:
    settings = use.settings or f"{use.weight:g}"
    return f"{use.name} {settings}{' in its mask' if use.mask else ''}"
