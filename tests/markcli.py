"""What the tests of ``loracomp watermark`` share: pictures, keys, and what was printed."""

from __future__ import annotations

from pathlib import Path

import torch
from commandline import Run
from PIL import Image

from loracomp.watermark.networks import Shape

SHAPE = Shape(4, 16, 32, 40, widths=(8, 8), blocks=(1, 1), bits=16)
SEEN: list[str] = []
"""All that commands printed."""


def noise(count: int, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=source)
    made = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return ((made * 255).round() / 255).clamp(0, 1)


def save_pictures(folder: Path, rows: torch.Tensor) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, row in enumerate(rows):
        paths.append(folder / f"{number}.png")
        Image.fromarray((row * 255).round().byte().permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


def issue(place: Path, loracomp: Run, name: str = "mono", user: str = "") -> Path:
    owner = place / "owner.key"
    if not owner.exists():
        assert loracomp("watermark", "keygen", "--out", owner)[0] == 0
    out = place / "keys" / f"{name}{user}.key"
    out.parent.mkdir(exist_ok=True)
    if not out.exists():
        words = ["--owner", owner, "--lora", name, "--user", user, "--bits", 16, "--out", out]
        assert loracomp("watermark", "keygen", *words, "--registry", out.parent)[0] == 0
    return out


def options(place: Path) -> list[object]:
    return ["--codec", place / "codec.safetensors", "--calibration", place / "calibration.safetensors"]
