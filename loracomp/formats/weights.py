"""Weights of a base model at hand, one layer at a time, for DoRA and for intruder dimensions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from loracomp.bases import BASES, classic_path, detect_base
from loracomp.errors import ResourceError
from loracomp.formats.native import Table

_COMPONENTS = ("unet", "transformer", "text_encoder")
# Embeddings are stored like linear layers without a bias.
_TABLES = ("token_embedding", "position_embedding", "shared", "embed_tokens", "relative_attention_bias")
_KNOWN = 0.9


def folder_weights(folder: str | Path) -> Callable[[str], Tensor]:
    """The weights in a diffusers folder, by loracomp's module path, read when asked for.

    Args:
        folder: A pipeline in diffusers format (``unet/…safetensors``, ``text_encoder/…``).

    Raises:
        ResourceError: The folder holds no component in safetensors; later, a layer is not in it.
    """
    from safetensors import safe_open

    places = _places(folder)

    def weight(path: str) -> Tensor:
        if path not in places:
            raise ResourceError(f"{folder}: has no weight of {path}; give the folder of the right base")
        file, key = places[path]
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor(key)

    return weight


def _places(folder: str | Path) -> dict[str, tuple[Path, str]]:
    """File and key of each weight in a diffusers folder, by module path."""
    from safetensors import SafetensorError, safe_open

    places: dict[str, tuple[Path, str]] = {}
    for file in sorted(Path(folder).glob("*/*.safetensors")):
        component = file.parent.name
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 — an open file is no mapping
                if key.endswith(".weight"):
                    places[classic_path(f"{component}.{key.removesuffix('.weight')}")] = (file, key)
    if not places:
        raise ResourceError(f"{folder}: holds no weights of a diffusers pipeline; give its folder")
    return places


def base_layers(base: str | None) -> tuple[str | None, Table | None]:
    """What :func:`load` takes for a base that users name: the name, or the layers in a folder.

    A folder in diffusers format counts as the known base that its layers fit; if they fit none, the
    layers' weight shapes by module path come second, read from the headers alone.

    Raises:
        ResourceError: The folder holds no component in safetensors.
    """
    if base is None or base in BASES or not Path(base).is_dir():
        return base, None
    from safetensors import safe_open

    layers: dict[str, tuple[int, ...]] = {}
    for path, (file, key) in _places(base).items():
        component, name = path.partition(".")[0], path.rpartition(".")[2]
        if component.startswith(_COMPONENTS) and name not in _TABLES:
            with safe_open(file, "pt") as tensors:
                shape = tuple(tensors.get_slice(key).get_shape())
            if len(shape) in (2, 4):
                layers[path] = shape
    known, share = detect_base(layers)
    return (known, None) if share > _KNOWN else (None, layers)


def shipped_folder(base: str) -> Path | None:
    """The folder of a base that comes with the package, None for the others."""
    row = BASES.get(base)
    folder = Path(str(files("loracomp"))) / row.source if row else None
    return folder if folder and folder.is_dir() else None
