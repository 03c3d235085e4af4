"""Front doors for users of diffusers besides ``loracomp.attach``: custom pipelines and a modular block.

pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline=custom_pipeline("sdxl"))
image = pipe("a cat", adapters=["cat.safetensors", "watercolor.safetensors:0.8"]).images[0]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.errors import UnknownNameError

if TYPE_CHECKING:
    from loracomp.plugin.modular import AdaptersStep

__all__ = ["AdaptersStep", "custom_pipeline"]

_FOLDER = Path(__file__).parent / "pipelines"


def custom_pipeline(kind: str) -> str:
    """The file that diffusers takes as ``custom_pipeline`` for a kind of model.

    Args:
        kind: ``sd15``, ``sdxl``, ``sd3`` or ``flux``.

    Raises:
        UnknownNameError: Another kind.
    """
    known = {file.stem: str(file) for file in _FOLDER.glob("[!_]*.py")}
    if kind not in known:
        raise UnknownNameError("kind of pipeline", kind, known)
    return known[kind]


def __getattr__(name: str) -> Any:
    if name != "AdaptersStep":
        raise AttributeError(f"module 'loracomp.plugin' has no attribute {name!r}")
    from loracomp.plugin.modular import AdaptersStep

    return AdaptersStep
