"""Trains the adapters that ship with the package: the maintainer's half of ``make assets``.

Run ``python -m loracomp.training.shipped --data .data --out loracomp/assets/adapters``. Every adapter
is made by the function behind ``loracomp train run``, on one open base; its ``manifest.json`` entry
holds the command that does the same alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracomp.adapter import Acceleration
from loracomp.errors import LoracompError, TrainingError, UnknownNameError
from loracomp.training.config import TrainConfig, make_config
from loracomp.training.presets import Kind

BASE = "glyph"
STEPS: dict[Kind, int] = {"style": 200, "subject": 225, "accelerator": 600}
LARGEST: dict[Kind, int] = {"style": 700_000, "subject": 700_000, "accelerator": 1_500_000}
"""Bytes that one shipped adapter may take."""

PICTURED = ("red apple", "rocket", "cat face", "house")
"""Subjects that the base knows, for the thumbnails of styles and of the accelerator."""


@dataclass(frozen=True)
class Item:
    """One shipped adapter.

    Attributes:
        name: Its name, and that of its data folder.
        kind: Style, subject or accelerator.
        trigger: Words that call it; the subject's name is among them; an accelerator has none.
        group: Name of the folder that its data folder lies in; empty for that of all adapters.
    """

    name: str
    kind: Kind
    trigger: str
    group: str

    def folder(self, data: Path) -> Path:
        """Its training data under the recipe's data folder."""
        return data / "adapters" / self.group / self.name

    def license(self) -> str:
        """Licences of the artwork that it is trained on, as ``modelspec.license`` states them."""
        from loracomp.training.glyph.packages import ART_SETS

        own = [art for art in ART_SETS if art.style == self.name]
        return ", ".join(sorted({art.license for art in own or ART_SETS if own or art.seen}))

    def prompts(self) -> list[str]:
        """What its thumbnail shows: known subjects in the style, or the subject in the base's styles."""
        from loracomp.training.glyph.packages import ART_SETS

        seen = [art.phrase for art in ART_SETS if art.seen]
        if self.kind == "accelerator":
            return [f"a {name} emoji, {phrase}" for name, phrase in zip(PICTURED, seen, strict=True)]
        if self.kind == "style":
            return [f"a {subject} emoji, {self.trigger}" for subject in PICTURED]
        return [f"a {self.trigger} emoji, {phrase}, white background" for phrase in seen]


ACCELERATOR = "accelerator"
SHIPPED = ("mono", "fluent", "blobs", "pixel", "watermelon", "bicycle", "violin", "light-bulb", ACCELERATOR)
"""The adapters inside the package; the benchmark's others are made where they are needed."""


def items(bench: bool = False) -> dict[str, Item]:
    """The adapters that can be made, by name.

    Args:
        bench: The benchmark's too: all styles and filters, all subjects that the base never saw, and
            backgrounds.
    """
    from loracomp.evaluation.artwork import read_names
    from loracomp.training.glyph.adapters import BACKGROUNDS, STYLES
    from loracomp.training.glyph.examples import PHRASES
    from loracomp.training.glyph.filters import FILTER_PHRASES
    from loracomp.training.glyph.splits import unseen_subjects

    phrases = PHRASES | FILTER_PHRASES
    made = [Item(name, "style", phrases[name], "styles") for name in STYLES]
    names = read_names().subjects
    made += [Item(slug, "subject", names[slug], "subjects") for slug in sorted(unseen_subjects())]
    made += [
        Item(f"{color}-background", "style", f"{color} backdrop", "backgrounds") for color in BACKGROUNDS
    ]
    made.append(Item(ACCELERATOR, "accelerator", "", ""))
    return {item.name: item for item in made if bench or item.name in SHIPPED}


def make(
    data: Path, out: Path, names: Iterable[str] = (), device: str = "auto", bench: bool = False
) -> dict[str, Any]:
    """Trains adapters and writes files, thumbnails and ``manifest.json``.

    Args:
        data: The recipe's data folder.
        out: Where to write.
        names: Which ones; all where none is named. Entries of the others are kept.
        device: Where to train.
        bench: Make the benchmark's adapters too.

    Returns:
        The manifest.

    Raises:
        UnknownNameError: No such adapter ships.
        TrainingError: Data are missing, or an adapter saw what it must not see or is too large.
    """
    from loracomp.loading import open_base

    known = items(bench)
    for name in (wanted := tuple(names) or tuple(known)):
        if name not in known:
            raise UnknownNameError("shipped adapter", name, known)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "manifest.json"
    entries = json.loads(path.read_text())["adapters"] if path.is_file() else {}
    pipe = open_base(BASE, dtype="fp32", device=device)
    for name in wanted:
        entries[name] = make_one(known[name], data, out, pipe)
        path.write_text(json.dumps({"adapters": dict(sorted(entries.items()))}, indent=1) + "\n")
    return dict(entries)


def make_one(item: Item, data: Path, out: Path, pipe: Any) -> dict[str, Any]:
    """Trains one adapter and draws its thumbnail; its manifest entry."""
    from loracomp.training.progress import plain_lines
    from loracomp.training.run import train

    folder, file = item.folder(data), out / f"{item.name}.safetensors"
    if not folder.is_dir():
        raise TrainingError(f"{folder}: missing; run `python -m loracomp.training.glyph adapters` first")
    config = settings(item)
    trained = train(config, folder, file, pipe=pipe, report=plain_lines(sys.stderr))
    sign(file, item)
    if (size := file.stat().st_size) > (limit := LARGEST[item.kind]):
        raise TrainingError(f"{file}: {size} bytes, more than {limit}; fewer targets or ranks")
    cells = json.loads(trained.adapter.metadata["loracomp.data"])["cells"]
    check_cells(item.kind, cells)
    draw_thumbnail(pipe, trained.adapter, item.prompts(), out / f"{item.name}.png")
    return {
        "kind": item.kind,
        "base": BASE,
        "trigger": item.trigger,
        "seed": config.seed,
        "command": command(item, config),
        "cells": cells,
    }


def settings(item: Item) -> TrainConfig:
    """What an adapter is trained with."""
    named = {"name": item.name, "kind": item.kind, "base": BASE, "trigger": item.trigger}
    return make_config({**named, "steps": STEPS[item.kind], "sample_count": 0})


def sign(file: Path, item: Item) -> None:
    """States licence and author in the header of a trained file; the tensors stay as they are."""
    from loracomp import formats

    stated = {"modelspec.license": item.license(), "modelspec.author": "the loracomp authors"}
    formats.save(formats.load(file), file, metadata=stated)


def command(item: Item, config: TrainConfig) -> str:
    """The command line that trains the same adapter."""
    words = ["loracomp", "train", "run", str(item.folder(Path(".data"))), "--kind", item.kind]
    words += ["--name", item.name, *(["--trigger", item.trigger] if item.trigger else [])]
    words += ["--steps", str(config.steps), "--seed", str(config.seed)]
    return shlex.join([*words, "--out", f"{item.name}.safetensors"])


def check_cells(kind: Kind, cells: Iterable[Iterable[str]]) -> None:
    """Raises :class:`TrainingError` if an adapter saw what would spoil the measurement of composition.

    A subject's adapter may see it in the base's styles only; a style's adapter none of the subjects
    that were kept from the base; an accelerator only what the base saw.
    """
    from loracomp.training.glyph.packages import BASE_STYLES
    from loracomp.training.glyph.splits import unseen_subjects

    pairs = [tuple(cell) for cell in cells]
    if not pairs:
        raise TrainingError("the training data have no manifest.json that says what they show")
    for subject, style in pairs:
        if kind != "style" and style not in BASE_STYLES:
            raise TrainingError(f"a {kind} adapter saw {subject} in {style}, no style of the base")
        if kind != "subject" and subject in unseen_subjects():
            raise TrainingError(f"a {kind} adapter saw the unseen subject {subject} in {style}")


def draw_thumbnail(pipe: Any, adapter: Any, prompts: Iterable[str], path: Path) -> None:
    """Four pictures by the adapter as one PNG of 256 by 256 pixels in 64 colours, below 40 kB."""
    from loracomp.bases import get_base
    from loracomp.loading import defaults
    from loracomp.pipeline import compose
    from loracomp.training.samples import grid, write_picture

    own = defaults(BASE, get_base(BASE))
    fast = adapter.accelerator or Acceleration(own["steps"], own["guidance"])
    settings: dict[str, Any] = {"num_inference_steps": fast.steps, "guidance_scale": fast.guidance}
    first, second, third, fourth = (
        compose(pipe, prompt, [adapter], seed=1, **settings)[0] for prompt in prompts
    )
    sheet = grid([[first, second], [third, fourth]], cell=126)
    write_picture(sheet.quantize(64, dither=0), path)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m loracomp.training.shipped", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".data"), help="the recipe's data folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="may be repeated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bench", action="store_true", help="the benchmark's adapters too")
    args = parser.parse_args(arguments)
    try:
        made = make(args.data, args.out, args.only, args.device, args.bench)
    except LoracompError as error:
        print(f"shipped: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{args.out}: {', '.join(sorted(made))}")


if __name__ == "__main__":
    main()
