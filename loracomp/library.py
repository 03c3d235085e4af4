"""Adapters by name: the ones that ship with the package, and files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.adapter import Acceleration, Adapter
from loracomp.errors import FormatError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from loracomp.formats.native import Table

SHIPPED = Path(__file__).parent / "assets" / "adapters"


@dataclass(frozen=True)
class Card:
    """What a gallery shows of a shipped adapter.

    Attributes:
        name: What users type.
        kind: ``style``, ``subject`` or ``accelerator``.
        base: Base it was made for.
        trigger: Words that call it.
        file: The adapter.
        thumbnail: A picture of what it does, 256 px.
    """

    name: str
    kind: str
    base: str
    trigger: str
    file: Path
    thumbnail: Path


@cache
def manifest() -> dict[str, Any]:
    """What each shipped adapter was trained on, by name."""
    path = SHIPPED / "manifest.json"
    return dict(json.loads(path.read_text())["adapters"]) if path.is_file() else {}


def cards() -> Iterator[Card]:
    """The shipped adapters, by name."""
    for name, entry in sorted(manifest().items()):
        yield Card(
            name,
            entry["kind"],
            entry["base"],
            entry["trigger"],
            SHIPPED / f"{name}.safetensors",
            SHIPPED / f"{name}.png",
        )


def find(source: str) -> Path:
    """The file behind a shipped name or a path.

    Raises:
        UnknownNameError: Neither; names near it are suggested.
        FormatError: A path with a file's ending, or a folder part, that does not exist.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if source in manifest():
        return SHIPPED / f"{source}.safetensors"
    if path.is_dir():
        raise FormatError(f"{source}: a folder; name one of the files in it")
    if path.suffix or len(path.parts) > 1:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1, cutoff=0.6)
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the path"
        raise FormatError(f"{source}: no such file; {hint}")
    raise UnknownNameError("adapter", source, manifest())


def acceleration(source: str) -> Acceleration | None:
    """How to draw with the accelerator behind a shipped name or a file; None where it is none.

    Reads the header alone; what is wrong with a damaged file is for :func:`open_adapter` to say. Raises
    what :func:`find` raises.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(find(source), framework="pt") as file:
            return Acceleration.from_json((file.metadata() or {}).get(Acceleration.KEY, ""))
    except (SafetensorError, OSError, UnicodeError):
        return None


def open_accelerator(source: str, base: str | None = None) -> Adapter:
    """As :func:`open_adapter`; raises :class:`UsageError` for an adapter that is no accelerator."""
    adapter = open_adapter(source, base)
    if adapter.accelerator is None:
        raise UsageError(
            f"{source}: no accelerator, its header has no {Acceleration.KEY}; use it with --lora, or "
            "train one with `loracomp train run DATA --kind accelerator`"
        )
    return adapter


def open_adapter(source: str, base: str | None = None, modules: Table | None = None) -> Adapter:
    """The adapter behind a shipped name or a file; see :func:`find` and ``formats.load``.

    Args:
        source: A shipped name or a path.
        base: The base it must be for; recognised where None.
        modules: Weight shapes by module path of a base of one's own. An adapter of a known base is
            opened too, for whoever draws with it to say that it does not fit.
    """
    from loracomp.formats import load

    path = find(source)
    if modules is None:
        return load(path, base=base)
    try:
        return load(path, base=base, modules=modules)
    except FormatError:
        with suppress(FormatError):
            return load(path)
        raise
