"""Which adapters a folder holds for the benchmark, and the words that call them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracomp.adapter import Adapter
from loracomp.errors import FormatError, UsageError
from loracomp.evaluation.artwork import Names
from loracomp.evaluation.cells import Say, plainly

Part = tuple[str, str]
"""Kind (``subject``, ``style``, ``filter``, ``background``) and name of what an adapter adds."""


@dataclass(frozen=True)
class Member:
    """An adapter that the benchmark can use.

    Attributes:
        part: What it adds.
        trigger: Words that call it; empty for none.
        file: Where it lies.
    """

    part: Part
    trigger: str
    file: Path


class Roster:
    """Adapters by what they add; files are read when they are first needed."""

    def __init__(self, members: Mapping[Part, Member], names: Names) -> None:
        self.members = dict(members)
        self.names = names
        self._open: dict[Part, Adapter] = {}

    def has(self, kind: str, name: str) -> bool:
        """Whether there is an adapter of this kind and name."""
        return (kind, name) in self.members

    def adapter(self, part: Part) -> Adapter:
        """One adapter; raises :class:`FormatError` for a file that is none."""
        from loracomp.formats import load

        if part not in self._open:
            self._open[part] = load(self.members[part].file)
        return self._open[part]

    def say(self, parts: Collection[Part]) -> Say:
        """The words for a picture made of ``parts``: their triggers, and plain words for anything else."""
        plain = plainly(self.names)

        def say(kind: str, name: str) -> str:
            words = plain(kind, name)
            member = self.members.get((kind, name)) if (kind, name) in parts else None
            trigger = member.trigger if member else ""
            if not trigger or trigger in words:
                return words
            return f"{trigger} {words}" if kind == "subject" and words not in trigger else trigger

        return say


def read_roster(folder: Path, names: Names) -> Roster:
    """The adapters in a folder that fit the benchmark's subjects, looks and colors.

    What an adapter adds is told by the file's name, else by the cells of its training manifest; both
    that and its trigger may be in the folder's ``manifest.json``.

    Raises:
        UsageError: No such folder.
        FormatError: A damaged file or manifest, or an adapter that was trained on what it is to be
            measured by.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --adapters names a folder of .safetensors files")
    table = _manifest(folder)
    members = {}
    for file in sorted(folder.glob("*.safetensors")):
        about = _header(file) | table.get(file.stem, {})
        cells = [tuple(cell) for cell in about.get("cells", ())]
        _refuse_leaks(file, cells, names)
        part = _part(file.stem, cells, names)
        if part and part not in members:
            members[part] = Member(part, about.get("trigger", "").split(",")[0].strip(), file)
    return Roster(members, names)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["adapters"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: not a table of adapters ({error})") from error


def _header(file: Path) -> dict[str, Any]:
    """Trigger and training cells as an adapter's own header tells them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            found = opened.metadata() or {}
        cells = json.loads(found.get("loracomp.data", "{}")).get("cells", [])
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise FormatError(f"{file}: not a readable adapter ({error})") from error
    return {"trigger": found.get("modelspec.trigger_phrase", ""), "cells": cells}


def _refuse_leaks(file: Path, cells: Sequence[tuple[str, ...]], names: Names) -> None:
    """Refuses an adapter that saw one of the artists' pictures that the benchmark compares with."""
    for subject, look in cells:
        if subject in names.subjects and look in names.looks:
            raise FormatError(
                f"{file}: was trained on {subject} in the style {look}, which the benchmark asks for; "
                "leave it out, or train it without"
            )


def _part(stem: str, cells: Sequence[tuple[str, ...]], names: Names) -> Part | None:
    """What an adapter adds, or None where the benchmark has no use for it."""
    color = stem.removesuffix("-background").removesuffix("_background")
    if color in names.colours:
        return "background", color
    subjects, looks = {cell[0] for cell in cells}, {cell[1] for cell in cells}
    for word in (stem, *(subjects if len(subjects) == 1 else ())):
        if word in names.subjects:
            return "subject", word
    for word in (stem, *(looks if len(looks) == 1 else ())):
        if word in names.looks:
            return ("filter" if names.looks[word].filter else "style"), word
    return None
