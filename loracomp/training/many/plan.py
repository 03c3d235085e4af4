"""A manifest made ready to train: data read, settings complete, layers found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracomp.errors import LoracompError, TrainingError, UsageError
from loracomp.pipeline import denoiser_of
from loracomp.training.cache import Encoded, default_cache, encode_pictures, fingerprint
from loracomp.training.dataset import Dataset, read_dataset
from loracomp.training.many.cohort import Cohort, Member
from loracomp.training.many.manifest import Row
from loracomp.training.many.places import Place, places_of
from loracomp.training.result import Origin
from loracomp.training.session import complete

READERS = 8
ENCODED_AT_ONCE = {"cuda": 32}
"""Pictures in one pass; one where the last bit must not depend on who else is encoded."""


@dataclass(frozen=True)
class Plan:
    """What a run of many adapters is about to do.

    Attributes:
        pipe: The open base.
        origin: What files say about it.
        members: All adapters, in the manifest's order.
        places: The layers that each set of paths stands for, by classic path.
    """

    pipe: Any
    origin: Origin
    members: tuple[Member, ...]
    places: dict[str, Place]

    @property
    def named(self) -> dict[str, Member]:
        """The members by name."""
        return {member.name: member for member in self.members}

    @property
    def digest(self) -> str:
        """SHA-256 over the base's weights and all settings and data: equal for equal runs."""
        parts = [fingerprint(denoiser_of(self.pipe)[1]), *(member.digest for member in self.members)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def places_of(self, cohort: Cohort) -> tuple[Place, ...]:
        """The layers that any member of the cohort changes, sorted by path."""
        wanted = frozenset().union(*(member.paths for member in cohort.members))
        return tuple(self.places[path] for path in sorted(wanted))

    def encode(self, members: Sequence[Member], cohort: Cohort) -> tuple[Encoded, dict[Member, int]]:
        """The members' pictures and captions in a row, and the number of each one's first picture."""
        config = cohort.config
        firsts, start = {}, 0
        for member in members:
            firsts[member] = start
            start += len(member.data.pictures)
        encoded = encode_pictures(
            self.pipe,
            [picture for member in members for picture in member.data.pictures],
            [caption for member in members for caption in member.captions],
            resolution=self.origin.resolution(config),
            variants=2 if config.flip else 1,
            with_text=not config.train_text_encoder,
            cache=default_cache(),
            at_once=ENCODED_AT_ONCE.get(self.pipe.device.type, 1),
        )
        return encoded, firsts


def read_data(rows: Sequence[Row]) -> list[Dataset]:
    """The data of every row, each folder read once.

    Raises:
        TrainingError: Data that cannot be used; the message names the row.
    """
    folders = {row.folder.resolve(): row for row in rows}

    def read(row: Row) -> Dataset:
        try:
            return read_dataset(row.folder)
        except TrainingError as error:
            raise TrainingError(f"{row.place}: data: {error}") from None

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(folders, pool.map(read, folders.values()), strict=True))
    return [found[row.folder.resolve()] for row in rows]


def make_plan(pipe: Any, origin: Origin, rows: Sequence[Row], data: Sequence[Dataset], out: Path) -> Plan:
    """Brings rows, data and base together.

    Raises:
        UsageError: A row's targets name no layer; the message names the row.
    """
    members: list[Member] = []
    found: dict[tuple[Any, ...], tuple[Place, ...]] = {}
    for row, dataset in zip(rows, data, strict=True):
        config = complete(row.config, origin.row)
        key = (config.targets, config.train_text_encoder)
        try:
            if key not in found:
                found[key] = places_of(pipe, config, origin.row)
        except LoracompError as error:
            raise UsageError(f"{row.place}: {error}") from None
        paths = frozenset(place.path for place in found[key])
        file = out / f"{config.name}.safetensors"
        members.append(Member(row.place, config, dataset, file, paths))
    table = {place.path: place for places in found.values() for place in places}
    return Plan(pipe, origin, tuple(members), table)
