"""Weights of a base model at hand, one layer at a time, for DoRA and for intruder dimensions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from loracomp.bases import BASES, classic_path
from loracomp.errors import ResourceError


def folder_weights(folder: str | Path) -> Callable[[str], Tensor]:
    """The weights in a diffusers folder, by loracomp's module path, read when asked for.

    Args:
        folder: A pipeline in diffusers format (``unet/…safetensors``, ``text_encoder/…``).

    Raises:
        ResourceError: The folder holds no component in safetensors; later, a layer is not in it.
    """
    from safetensors import safe_open

    places: dict[str, tuple[Path, str]] = {}
    for file in sorted(Path(folder).glob("*/*.safetensors")):
        component = file.parent.name
        with suppress(OSError), safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 — an open file is no mapping
                if key.endswith(".weight"):
                    places[classic_path(f"{component}.{key.removesuffix('.weight')}")] = (file, key)
    if not places:
        raise ResourceError(f"{folder}: holds no weights of a diffusers pipeline; give its folder")

    def weight(path: str) -> Tensor:
        if path not in places:
            raise ResourceError(f"{folder}: has no weight of {path}; give the folder of the right base")
        file, key = places[path]
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor(key)

    return weight


def shipped_folder(base: str) -> Path | None:
    """The folder of a base that comes with the package, None for the others."""
    row = BASES.get(base)
    folder = Path(str(files("loracomp"))) / row.source if row else None
    return folder if folder and folder.is_dir() else None
