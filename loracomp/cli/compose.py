"""``loracomp compose``."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.screen import Json, emit_json, steps_bar
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.recipe import Recipe


def compose(
    prompt: Annotated[str, typer.Argument(help="What to draw; <lora:NAME:WEIGHT> is understood.")] = "",
    lora: Annotated[
        list[str] | None, typer.Option("--lora", help="NAME_OR_FILE[:WEIGHT], once per adapter.")
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(
            help="NAME_OR_FILE of an adapter for few steps; on throughout, sets steps and guidance."
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `loracomp methods`.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="NAME=VALUE of the method, e.g. period=0.1.")
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
    as_json: Json = False,
) -> None:
    """Draw an image with several LoRAs."""
    started = time.monotonic()
    _writable(out)
    choices = {
        "method": method, "negative": negative, "scheduler": scheduler, "steps": steps,
        "guidance": guidance, "guidance_rescale": guidance_rescale, "seed": seed, "batch": batch,
        "options": method_options(option) if option else None, **_size(size),
    }  # fmt: skip
    recipe = (
        _repeated(repeat, prompt, lora, choices | {"base": base, "accelerator": accelerator}, dtype, device)
        if repeat
        else _planned(
            prompt, lora or [], accelerator, base or "glyph", choices | {"dtype": dtype, "device": device}
        )
    )
    from loracomp.drawing import draw, redraw
    from loracomp.recipe import save_image

    with steps_bar("composing", as_json) as on_step:
        drawn = (redraw if repeat else draw)(recipe, offload=offload, on_step=on_step)
    paths = _paths(out, len(drawn))
    for path, (image, used) in zip(paths, drawn, strict=True):
        save_image(image, path, used)
    _report(paths, [used for _, used in drawn], time.monotonic() - started, as_json)


def _planned(
    prompt: str, loras: list[str], accelerator: str | None, base: str, choices: dict[str, Any]
) -> Recipe:
    from loracomp.drawing import plan
    from loracomp.library import find, open_accelerator
    from loracomp.recipe import parse_use, split_prompt

    text, tagged = split_prompt(prompt)
    uses = (*map(parse_use, loras), *tagged)
    if not text:
        raise UsageError("no prompt; say what to draw: loracomp compose 'a watermelon emoji' --lora mono")
    for use in uses:
        find(use.source)
    if accelerator:
        fast = parse_use(accelerator, "--accelerator")
        open_accelerator(fast.source)
        uses = (*uses, fast)
    if choices["seed"] is None:
        choices["seed"] = time.time_ns() % 2**31
    return plan(text, base, uses=uses, **choices)


def _repeated(
    image: Path, prompt: str, loras: list[str] | None, choices: dict[str, Any], dtype: str, device: str
) -> Recipe:
    """The recipe in the image; nothing but where it runs may be changed."""
    from loracomp.recipe import read_recipe

    given = [name for name, value in (choices | {"prompt": prompt, "lora": loras}).items() if value]
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


def _report(paths: list[Path], recipes: list[Recipe], seconds: float, as_json: bool) -> None:
    if as_json:
        images = [{"file": str(p), "recipe": asdict(r)} for p, r in zip(paths, recipes, strict=True)]
        emit_json({"images": images, "seconds": round(seconds, 2)})
        return
    recipe = recipes[0]
    parts = " + ".join(f"{use.name} {use.weight:g}" for use in recipe.uses) or "no adapter"
    for path in paths:
        typer.echo(path)
    typer.echo(
        f"{parts}, {recipe.method}, {recipe.base}, {recipe.steps} steps, seed {recipe.seed}, {seconds:.1f} s",
        err=True,
    )
