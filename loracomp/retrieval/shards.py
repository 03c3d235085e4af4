"""Features on disk: shards named by their content, each written once and whole, never changed.

A shard is a safetensors file of many adapters of one base. Any index can be made anew from shards alone.
Writes go to a temporary name, to the disk, and then to their place, so a shard is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import FormatError
from loracomp.retrieval.encoding import Encoded, Facts
from loracomp.retrieval.features import VERSION, Features
from loracomp.retrieval.textprobes import TextBlock

_BY_SITE = ("spectra", "sketch", "out", "into")
_TEXT = ("energy", "listen", "pull", "echo")
_DRAWN, _PICTURES = "drawn.rows", "drawn.pictures"
_ENDING = ".safetensors"


def pack(rows: Sequence[Features]) -> dict[str, Tensor]:
    """Features of several adapters of one base as tensors; layers that none of them changes are left out."""
    present = torch.stack([row.present for row in rows])
    places = present.any(0).nonzero()[:, 0]
    tensors = {"present": present, "places": places, "whole": torch.stack([row.whole for row in rows])}
    for name in _BY_SITE:
        tensors[name] = torch.stack([getattr(row, name)[places] for row in rows])
    spoken = [place for place, row in enumerate(rows) if row.text is not None]
    if spoken:
        tensors["spoken"] = torch.tensor(spoken)
        for name in _TEXT:
            tensors[f"text.{name}"] = torch.stack([getattr(rows[p].text, name).half() for p in spoken])
    drawn = {place: row.drawn for place, row in enumerate(rows) if row.drawn is not None}
    if drawn:
        tensors |= {_DRAWN: torch.tensor(list(drawn)), _PICTURES: torch.stack(list(drawn.values()))}
    return tensors


def unpack(tensors: dict[str, Tensor]) -> list[Features]:
    """What :func:`pack` packed, its text blocks in half precision's numbers."""
    present, places = tensors["present"], tensors["places"]
    spoken = {int(p): n for n, p in enumerate(tensors["spoken"])} if "spoken" in tensors else {}
    drawn = {int(p): tensors[_PICTURES][n] for n, p in enumerate(tensors.get(_DRAWN, ()))}
    whole, parts = tensors["whole"], {}
    for name in _BY_SITE:
        values = tensors[name]
        parts[name] = values.new_zeros(*present.shape, *values.shape[2:])
        parts[name][:, places] = values
    texts = {name: tensors[f"text.{name}"].float() for name in _TEXT} if spoken else {}
    out = []
    for row in range(len(present)):
        text = TextBlock(**{name: texts[name][spoken[row]] for name in _TEXT}) if row in spoken else None
        sites = {name: values[row] for name, values in parts.items()}
        out.append(Features(present[row], whole=whole[row], text=text, drawn=drawn.get(row), **sites))
    return out


@dataclass(frozen=True)
class Shard:
    """One shard's file and what its header says.

    Attributes:
        path: The file.
        number: Counts up; of rows with one id the one in the highest shard counts.
        base: Base of all its adapters.
        bank: Digest of the probe bank, empty where there was none.
        facts: A row each.
        drawn: The rows that have pictures, ascending.
    """

    path: Path
    number: int
    base: str
    bank: str
    facts: tuple[Facts, ...]
    drawn: tuple[int, ...] = ()

    def features(self) -> list[Features]:
        """The features, in the order of ``facts``."""
        from safetensors.torch import load_file

        return unpack(load_file(self.path))

    def pictures(self, row: int) -> Tensor:
        """The pictures of a row, (8, 3, 64, 64), uint8, read alone; raises ValueError where it has none."""
        from safetensors import safe_open

        place = self.drawn.index(row)
        with safe_open(self.path, "pt") as file:
            found: Tensor = file.get_slice(_PICTURES)[place]
        return found


class FeatureStore:
    """The shards in a folder.

    Args:
        folder: Made where it does not exist; left-overs of writes that were cut off are removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob("*.part"):
            torn.unlink(missing_ok=True)

    @cached_property
    def shards(self) -> list[Shard]:
        """All shards in the order they were written; raises :class:`FormatError` for damaged ones."""
        found = [_read_header(path) for path in self.folder.glob(f"*{_ENDING}")]
        return sorted(found, key=lambda shard: (shard.number, shard.path.name))

    def write(self, rows: Sequence[Encoded], bank: str) -> Shard:
        """Adds a shard of adapters of one base; it is on the disk when this returns."""
        from safetensors.torch import save

        number = max((shard.number for shard in self.shards), default=0) + 1
        facts = [asdict(row.facts) for row in rows]
        base = rows[0].facts.base
        said = {"version": str(VERSION), "number": str(number), "base": base, "bank": bank}
        data = save(pack([row.features for row in rows]), {**said, "facts": json.dumps(facts)})
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}{_ENDING}"
        write_whole(path, data)
        drawn = tuple(place for place, row in enumerate(rows) if row.features.drawn is not None)
        shard = Shard(path, number, base, bank, tuple(row.facts for row in rows), drawn)
        self.shards.append(shard)
        return shard

    def latest(self) -> dict[str, tuple[Shard, int]]:
        """The shard and row of each adapter, by id."""
        return {facts.id: (shard, row) for shard in self.shards for row, facts in enumerate(shard.facts)}

    def pictures(self, ids: Iterable[str] | None = None) -> dict[str, Callable[[], Tensor]]:
        """Readers of the pictures of those that were drawn with, by id: of all, or of some."""
        latest = self.latest()
        places = ((id_, *latest[id_]) for id_ in (latest if ids is None else ids) if id_ in latest)
        return {id_: partial(shard.pictures, row) for id_, shard, row in places if row in shard.drawn}

    def rows(self, ids: set[str] | None = None) -> Iterator[tuple[Shard, list[Encoded]]]:
        """The current rows shard by shard, all or those of some ids."""
        places = self.latest()
        for shard in self.shards:
            wanted = [
                row
                for row, facts in enumerate(shard.facts)
                if places[facts.id] == (shard, row) and (ids is None or facts.id in ids)
            ]
            if wanted:
                found = shard.features()
                yield shard, [Encoded(shard.facts[row], found[row]) for row in wanted]


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there in whole or not at all, whenever the machine stops."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_header(path: Path) -> Shard:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            there = _DRAWN in file.keys()  # noqa: SIM118
            drawn = tuple(file.get_tensor(_DRAWN).tolist()) if there else ()
        if said.get("version") != str(VERSION):
            raise FormatError(f"{path}: features of another version; build the index anew in another folder")
        facts = tuple(_facts(row) for row in json.loads(said["facts"]))
        return Shard(path, int(said["number"]), said["base"], said["bank"], facts, drawn)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{path}: a damaged shard ({error}); delete it and build again") from error


def _facts(row: dict[str, Any]) -> Facts:
    return Facts(**{field.name: row[field.name] for field in fields(Facts)})
