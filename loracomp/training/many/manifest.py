"""The manifest of a run of many adapters: rows with a name, a data folder, and any setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracomp.errors import UsageError
from loracomp.training.config import TrainConfig, make_config

SHARED = ("base", "precision")
"""Settings that all rows of a manifest have in common, because they share one open base."""


@dataclass(frozen=True)
class Row:
    """One adapter to train.

    Attributes:
        place: Where it stands, for messages: file, row number and name.
        folder: Its data folder.
        config: Its settings, before the base fills in the rest.
    """

    place: str
    folder: Path
    config: TrainConfig


def read_manifest(path: Path) -> tuple[Row, ...]:
    """The rows of a manifest: JSON lines, or one JSON list of objects.

    ``data`` is taken relative to the manifest's folder. Unlike in a single run, no sample grid is drawn
    unless a row asks for one with ``sample_count``.

    Raises:
        UsageError: The file cannot be read, a field is wrong, two rows have one name, or rows differ in
            base or precision; the message names row and field.
    """
    rows = tuple(_row(place, values, path.parent) for place, values in _objects(path))
    if not rows:
        raise UsageError(f"{path}: no rows; write one object a line, with name, data and kind")
    named: dict[str, str] = {}
    for row in rows:
        before = named.setdefault(row.config.name.lower(), row.place)
        if before != row.place:
            raise UsageError(f"{row.place}: name: that of {before} already")
        for field in SHARED:
            own, first = getattr(row.config, field), getattr(rows[0].config, field)
            if own != first:
                raise UsageError(f"{row.place}: {field}: {own!r}, but the first row has {first!r}")
    return rows


def _objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    lines = text.splitlines()
    if text.lstrip().startswith("["):
        pieces = [
            (f"{path}, row {number}", value) for number, value in enumerate(_parsed(str(path), text), 1)
        ]
    else:
        places = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
        pieces = [(place, _parsed(place, line)) for place, line in places]
    for place, value in pieces:
        if not isinstance(value, dict):
            raise UsageError(f"{place}: not an object with name, data and kind")
        yield f"{place} ({value['name']})" if isinstance(value.get("name"), str) else place, value


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{place}: not JSON ({error})") from None


def _row(place: str, values: Mapping[str, Any], folder: Path) -> Row:
    settings = {"sample_count": 0, **values}
    data = settings.pop("data", None)
    if not isinstance(data, str) or not data:
        raise UsageError(f"{place}: data: needed; the folder of its pictures")
    try:
        return Row(place, folder / data, make_config(settings))
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
