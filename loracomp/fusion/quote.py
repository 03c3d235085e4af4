"""A part of what a user typed, and where it stands, so that errors can point there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NoReturn

from loracomp.errors import UsageError


@dataclass(frozen=True)
class Quote:
    """A part of a longer text.

    Attributes:
        value: The part.
        start: Its first character in the text, from 0.
        label: What messages begin with: the option and the whole text.
    """

    value: str
    start: int
    label: str

    def fail(self, message: str) -> NoReturn:
        """Raises :class:`UsageError` with the message and the column, counted from 1."""
        raise UsageError(f"{self.label}: {message} (column {self.start + 1})")

    def split(self, marks: str) -> list[Quote]:
        """The parts between any of the marks."""
        parts, start = [], 0
        for end in [*(i for i, mark in enumerate(self.value) if mark in marks), len(self.value)]:
            parts.append(replace(self, value=self.value[start:end], start=self.start + start))
            start = end + 1
        return parts

    def cut(self, mark: str) -> tuple[Quote, Quote | None]:
        """What stands before and behind the first mark; None where there is none."""
        before, found, behind = self.value.partition(mark)
        rest = replace(self, value=behind, start=self.start + len(before) + len(mark))
        return replace(self, value=before), rest if found else None

    def number(self, what: str = "weight") -> float:
        """A finite number."""
        try:
            value = float(self.value)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.fail(f"{what} {self.value!r} is not a number")
        return value
