"""Many small LoRA files for glyph, written without ceremony."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from loracomp.bases import modules

_PATH = "unet.down_blocks.0.attentions.0.proj_in"
_KEY = f"lora_{_PATH.replace('.', '_')}"
STYLES = ("ink", "pixel", "oil", "neon", "chalk")
LICENCES = ("MIT", "CC0-1.0", "CC-BY-4.0")


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """One layer of rank 1 in kohya's dialect."""
    out, into = modules("glyph")[_PATH][:2]
    drawn = torch.Generator().manual_seed(seed)
    tail = (1, 1) if len(modules("glyph")[_PATH]) == 4 else ()
    return {
        f"{_KEY}.lora_down.weight": torch.randn(1, into, *tail, generator=drawn),
        f"{_KEY}.lora_up.weight": torch.randn(out, 1, *tail, generator=drawn),
        f"{_KEY}.alpha": torch.tensor(1.0),
    }


def header(number: int) -> dict[str, str]:
    """Title, triggers, tags and licence of the file with this number."""
    style = STYLES[number % len(STYLES)]
    return {
        "modelspec.title": f"{style} study {number:04d}",
        "modelspec.trigger_phrase": f"{style} drawing, look{number}",
        "modelspec.tags": f"style, {style}",
        "modelspec.license": LICENCES[number % len(LICENCES)],
    }


def write(folder: Path, count: int, distinct: bool = False) -> list[Path]:
    """Files in folders of a hundred; all with the same weights unless they are to be distinct."""
    files = []
    for number in range(count):
        place = folder / f"{number // 100:02d}"
        place.mkdir(parents=True, exist_ok=True)
        files.append(place / f"file{number:04d}.safetensors")
        save_file(tensors(number if distinct else 0), files[-1], header(number))
    return files
