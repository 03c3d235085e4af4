"""Adapters to train, and which of them can share one batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loracomp.training.config import TrainConfig
from loracomp.training.dataset import Dataset

ALIKE = (
    "accumulation",
    "resolution",
    "flip",
    "min_snr_gamma",
    "train_text_encoder",
    "gradient_checkpointing",
    "objective",
    "teacher_guidance",
    "teacher_rescale",
    "teacher_steps",
    "student_steps",
)
"""Settings that adapters in one batch have in common; all others are each one's own."""


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter of a run.

    Attributes:
        place: Where it stands in the manifest, for messages.
        config: Its effective config.
        data: What it learns from.
        out: The file to write.
        paths: Classic paths of the layers that it changes.
    """

    place: str
    config: TrainConfig
    data: Dataset
    out: Path
    paths: frozenset[str]

    @property
    def name(self) -> str:
        """The adapter's name, unique in its manifest."""
        return self.config.name

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """One caption per picture, as trained."""
        return tuple(self.data.captions(self.config.trigger, self.config.name))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over settings and data: equal for equal runs."""
        text = f"{self.config.dump()}\0{self.data.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Cohort:
    """Members that can share batches, in the manifest's order."""

    members: tuple[Member, ...]

    @property
    def config(self) -> TrainConfig:
        """Any member's config, for the settings in :data:`ALIKE`."""
        return self.members[0].config

    @property
    def width(self) -> int:
        """Samples of each adapter in a forward pass; smaller batches are padded with unweighted samples."""
        return max(member.config.batch for member in self.members)

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(member.config.rank for member in self.members)

    @property
    def scaled(self) -> bool:
        """Whether some member's alpha is not its rank."""
        return any(member.config.scale_alpha != member.config.rank for member in self.members)

    @property
    def total_steps(self) -> int:
        """Steps of all members together."""
        return sum(member.config.steps for member in self.members)

    def seats(self, at_once: int) -> int:
        """Seats for at most ``at_once`` members, as few as make no more rounds."""
        rounds = -(-len(self.members) // at_once)
        return -(-len(self.members) // rounds)


def cohorts_of(members: Sequence[Member]) -> tuple[Cohort, ...]:
    """Members grouped by what batches have in common; batch sizes in one group differ by less than 2."""
    groups: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        own = tuple(getattr(member.config, field) for field in ALIKE)
        groups.setdefault(((member.config.batch - 1).bit_length(), *own), []).append(member)
    return tuple(Cohort(tuple(group)) for group in groups.values())
