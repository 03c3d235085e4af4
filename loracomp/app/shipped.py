"""What a gallery needs to know of the adapters that ship: from the package, nothing is imported."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from loracomp.app.facts import Facts

SHIPPED = Path(__file__).parents[1] / "assets" / "adapters"
_PREFIX = 8
_DOWN = ".lora_down.weight"


def shipped_facts(path: Path) -> Facts | None:
    """The facts of a file that ships; None for any other, and for one that is not as it was shipped.

    Its name, kind and base are those that it ships under.
    """
    entry = _manifest().get(path.stem) if path.parent == SHIPPED else None
    if entry is None:
        return None
    try:
        said, ranks = _header(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    tags, triggers = _list(said.get("modelspec.tags", "")), _list(said.get("modelspec.trigger_phrase", ""))
    title, licence = said.get("modelspec.title", path.stem), said.get("modelspec.license", "")
    words = [title, path.stem, *triggers, *tags, licence, entry["base"], path.stem, entry["kind"]]
    return Facts(
        name=path.stem,
        base=entry["base"],
        kind=entry["kind"],
        licence=licence,
        triggers=triggers,
        tags=tags,
        rank=max(ranks),
        accelerator=entry["kind"] == "accelerator",
        hash=said.get("sshs_model_hash", "")[:12].lower(),
        words=" ".join(words).lower(),
    )


def _header(path: Path) -> tuple[dict[str, str], list[int]]:
    """Metadata of a safetensors file, and the ranks of its layers."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(_PREFIX), "little")
        header = json.loads(file.read(min(size, 1 << 24)))
    said = header.pop("__metadata__")
    return said, [part["shape"][0] for name, part in header.items() if name.endswith(_DOWN)]


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


@cache
def _manifest() -> dict[str, Any]:
    path = SHIPPED / "manifest.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["adapters"]) if path.is_file() else {}
