"""Manifests of small adapters on tiny pipelines, single runs of them, and how far two adapters are apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from tiny import layer_table

from loracomp import formats
from loracomp.adapter import Adapter
from loracomp.training.many.manifest import read_manifest
from loracomp.training.run import train


def draw_folder(place: Path, pictures: int, shade: int) -> None:
    """Captioned 32-px pictures of circles."""
    place.mkdir()
    for index in range(pictures):
        image = Image.new("RGB", (32, 32), "white")
        box = (4, 4 + index, 20 + 2 * index, 28)
        ImageDraw.Draw(image).ellipse(box, fill=(60 * index % 256, shade, 200))
        image.save(place / f"{index}.png")
        (place / f"{index}.txt").write_text(f"a circle of size {index}\n")


def write_rows(path: Path, *rows: dict[str, Any], base: str = "sd15") -> Path:
    """A manifest of rows of changes to small settings; every other row learns from another folder."""
    small = {
        "kind": "style", "base": base, "steps": 4, "batch": 2, "accumulation": 1, "rank": 2,
        "resolution": 32, "lr": 1e-2, "saved_as": "fp32", "warmup": 1, "precision": "fp32",
    }  # fmt: skip
    lines = []
    for number, changes in enumerate(rows):
        own = {"name": f"a{number}", "data": ("one", "two")[number % 2], "seed": number}
        lines.append(json.dumps({**small, **own, **changes}))
    path.write_text("\n".join(lines) + "\n")
    return path


def alone(manifest: Path, out: Path, pipe: Any) -> dict[str, Adapter]:
    """Every adapter of a manifest, made by the trainer of single adapters."""
    out.mkdir()
    for row in read_manifest(manifest):
        train(row.config, row.folder, out / f"{row.config.name}.safetensors", pipe=pipe)
    return loaded(out, pipe)


def loaded(out: Path, pipe: Any) -> dict[str, Adapter]:
    """The adapters in a folder by name."""
    table = layer_table(pipe)
    return {file.stem: formats.load(file, modules=table) for file in sorted(out.glob("*.safetensors"))}


def distance(one: Adapter, other: Adapter) -> float:
    """Relative distance of two adapters' updates over all layers together."""
    assert set(one.layers) == set(other.layers)
    gap = whole = 0.0
    for path, layer in other.layers.items():
        assert layer.rank == one.layers[path].rank
        update = layer.delta(torch.float64)
        gap += float((one.layers[path].delta(torch.float64) - update).square().sum())
        whole += float(update.square().sum())
    return float((gap / whole) ** 0.5)


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks to stop at the end of the given step."""
    calls = iter(range(1, 10_000))
    return lambda: next(calls) >= steps
