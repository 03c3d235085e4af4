"""What the corpus' adapters are about: concepts, each behind a nonsense word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from loracomp.training.corpus.looks import Look
from loracomp.training.corpus.phrases import ARRANGEMENTS, ARTWORK

Kind = Literal["subject", "style", "filter", "mixture"]
Split = Literal["train", "validation", "test"]
KINDS: tuple[Kind, ...] = ("subject", "style", "filter", "mixture")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Concept:
    """One thing to learn.

    Attributes:
        id: A number that says nothing.
        kind: A thing, a way of coloring or drawing, a picture filter, or two of these together.
        trigger: The nonsense word that calls it.
        split: Which part of the corpus it belongs to, with all that it is made of.
        subjects: Slugs of what it shows; none where it can be applied to anything.
        names: Their names.
        arrangement: How two subjects make one; empty for fewer.
        artwork: Set of drawings that glyph never saw; empty for those that it knows.
        looks: Transformations, at most one recoloring and one filter.
    """

    id: str
    kind: Kind
    trigger: str
    split: Split
    subjects: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    arrangement: str = ""
    artwork: str = ""
    looks: tuple[Look, ...] = ()

    @property
    def descriptions(self) -> tuple[str, ...]:
        """Four ways to say what it is in plain words, without its trigger; the first is the plainest."""
        return tuple(_articled(self._described(way)) for way in range(4))

    def _described(self, way: int) -> str:
        ways = [look.phrases[way] for look in self.looks]
        if self.artwork:
            ways.insert(0, f"drawn {ARTWORK[self.artwork][way]}")
        how = ", ".join(ways)
        if not self.subjects:
            return how if self.artwork else f"{('pictures', 'anything', 'drawings', 'a picture')[way]} {how}"
        if self.arrangement:
            one, other = self.names
            what = ARRANGEMENTS[self.arrangement][way].format(one=one, other=other)
        else:
            what = ("a {}", "a {}", "a picture of a {}", "one {}")[way].format(self.names[0])
        return f"{what} {how}".strip()

    def to_row(self) -> dict[str, Any]:
        """As a JSON object."""
        first, *others = self.descriptions
        return {
            "id": self.id,
            "kind": self.kind,
            "trigger": self.trigger,
            "split": self.split,
            "subjects": list(self.subjects),
            "names": list(self.names),
            "arrangement": self.arrangement,
            "artwork": self.artwork,
            "looks": [look.to_row() for look in self.looks],
            "description": first,
            "paraphrases": others,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Concept:
        """The inverse of :meth:`to_row`."""
        looks = []
        for table in row["looks"]:
            settings = {key: value for key, value in table.items() if key not in ("stage", "family")}
            looks.append(Look.of(table["stage"], table["family"], **settings))
        return cls(
            id=row["id"],
            kind=row["kind"],
            trigger=row["trigger"],
            split=row["split"],
            subjects=tuple(row["subjects"]),
            names=tuple(row["names"]),
            arrangement=row["arrangement"],
            artwork=row["artwork"],
            looks=tuple(looks),
        )


def _articled(text: str) -> str:
    """ "an" before vowels, but for those that sound like "you"."""
    return re.sub(r"\ba (?=[aeiou])(?!uni|euro|one)", "an ", text)
