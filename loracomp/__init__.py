"""loracomp: train, watermark, find and compose image LoRAs.

The names below are loaded on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "loracomp.adapter",
    "BASES": "loracomp.bases",
    "Base": "loracomp.bases",
    "Capacity": "loracomp.pipeline",
    "LoracompError": "loracomp.errors",
    "LowRank": "loracomp.lowrank",
    "Program": "loracomp.fusion",
    "Recipe": "loracomp.recipe",
    "attach": "loracomp.pipeline",
    "compose": "loracomp.pipeline",
    "detach": "loracomp.pipeline",
    "fold": "loracomp.fusion.offline",
    "load": "loracomp.formats",
    "merge": "loracomp.fusion.offline",
    "open_adapter": "loracomp.library",
    "open_base": "loracomp.loading",
    "own_layers": "loracomp.pipeline",
    "save": "loracomp.formats",
}

__all__ = [
    "BASES",
    "Adapter",
    "Base",
    "Capacity",
    "LoracompError",
    "LowRank",
    "Program",
    "Recipe",
    "__version__",
    "attach",
    "compose",
    "detach",
    "fold",
    "load",
    "merge",
    "open_adapter",
    "open_base",
    "own_layers",
    "save",
]

if TYPE_CHECKING:
    from loracomp.adapter import Adapter
    from loracomp.bases import BASES, Base
    from loracomp.errors import LoracompError
    from loracomp.formats import load, save
    from loracomp.fusion import Program
    from loracomp.fusion.offline import fold, merge
    from loracomp.library import open_adapter
    from loracomp.loading import open_base
    from loracomp.lowrank import LowRank
    from loracomp.pipeline import Capacity, attach, compose, detach, own_layers
    from loracomp.recipe import Recipe


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loracomp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
