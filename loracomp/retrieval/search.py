"""Finding adapters: by words of a text, by a picture, or by an adapter that is like them.

Several views rank apart: a learned encoder, texts that move the weights (:mod:`loracomp.retrieval.hearing`),
and headers. :mod:`loracomp.retrieval.evidence` makes one order of them. Each answer says what it used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from loracomp.errors import ResourceError, UsageError
from loracomp.formats import shipped_folder
from loracomp.retrieval import hearing, making
from loracomp.retrieval.bank import TextStates, text_states
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.encoding import encode_file
from loracomp.retrieval.evidence import Signs, Views, ordered
from loracomp.retrieval.filters import Compare, Filter, both
from loracomp.retrieval.index import Hit, Row
from loracomp.retrieval.words import WordIndex

CANDIDATES = 200
_WORDY = 200_000
_NONE: frozenset[str] = frozenset()


class QueryEncoder(making.Encoder, Protocol):
    """A learned encoder with its towers for queries."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (texts, 512)."""

    def images(self, images: Sequence[Any]) -> Tensor:
        """Unit vectors (images, 512) of PIL images."""

    def confidence(self, score: float) -> float:
        """Calibrated probability, in [0, 1], that a best match of this cosine is one."""

    def knows(self, text: str) -> float:
        """Share of a text's words that it was trained with, in [0, 1]."""


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        hits: Best first; ``explain`` has each view's score and rank (``hears``, ``hears_rank``, …).
        used: Views that took part.
        base: Base whose adapters were searched.
        confidence: Probability, in [0, 1], that the first hit is what was asked for rather than the best
            of adapters that have nothing to do with it.
        notes: What should be known of the answer, a line each.
    """

    hits: tuple[Hit, ...]
    used: tuple[str, ...]
    base: str
    confidence: float
    notes: tuple[str, ...] = field(default=())


Describe = Callable[[Any], str]
"""Puts a picture into words."""


class Searcher:
    """Searches a collection.

    Args:
        collection: The index.
        encoders: Learned encoders with towers for queries, by base.
        folders: Folders of bases in diffusers format, for their text encoders; glyph has its own.
        states: Text encoders by base where they are at hand already.
    """

    def __init__(
        self,
        collection: Collection,
        encoders: Mapping[str, QueryEncoder] | None = None,
        folders: Mapping[str, Path] | None = None,
        states: Mapping[str, TextStates] | None = None,
    ) -> None:
        self._collection = collection
        self._encoders = dict(encoders or {})
        self._folders = dict(folders or {})
        self._states: dict[str, TextStates] = dict(states or {})

    @cached_property
    def _words(self) -> WordIndex | None:
        index = self._collection.index
        if index.stats()["rows"] > _WORDY:
            return None
        rows = index.scan(columns=("id", "name", "words"))
        return WordIndex((row["id"], f"{row['name']} {row['words']}") for row in rows)

    def text(
        self,
        query: str,
        k: int = 10,
        where: Filter | None = None,
        base: str | None = None,
        words: bool = True,
    ) -> Answer:
        """Adapters for a text.

        Args:
            query: What is wanted.
            k: How many at most.
            where: What they must be.
            base: Base they must be for; the commonest of the index where None.
            words: Whether headers take part; False asks the weights alone.

        Raises:
            UsageError: An empty query, or an empty index.
        """
        if not query.strip():
            raise UsageError("an empty text; say what is wanted: loracomp index search 'a watercolor dragon'")
        base = base or self._commonest(where)
        views, notes = self._asked(query, base, where, words)
        drawn = _NONE
        if base in self._encoders:
            learned, drawn = self._learned(self._encoders[base].texts([query])[0], base, where)
            views = {"learned": learned, **views}
        else:
            notes.append(f"no learned encoder for {base}: texts are matched by text probes and headers")
        return self._fused(views, k, base, self._signs(query, base, drawn), notes)

    def _asked(self, query: str, base: str, where: Filter | None, words: bool) -> tuple[Views, list[str]]:
        """What hears a text, and whose header has its words; and what is to be said of that."""
        limits, views, notes = _limits(base, where), {}, []
        if base in self._collection.banks:
            views["hears"] = self._heard(query, base, limits)
        else:
            notes.append(f"no text probes for {base}: build with --base {base} --base-folder FOLDER")
        if words and self._words is not None:
            among = (
                None if where is None else {row["id"] for row in self._collection.index.scan(limits, ("id",))}
            )
            views["words"] = self._words.search(query, CANDIDATES, among)
        return views, notes

    def image(
        self,
        image: Any,
        k: int = 10,
        where: Filter | None = None,
        base: str | None = None,
        describer: Callable[[str], Describe | None] | None = None,
    ) -> Answer:
        """Adapters for a picture (PIL).

        Args:
            image: What is wanted.
            k: How many at most.
            where: What they must be.
            base: Base they must be for; the commonest of the index where None.
            describer: Gives what puts a picture into words for a base; these are searched for as well.

        Raises:
            ResourceError: Neither a learned encoder nor words.
        """
        base = base or self._commonest(where)
        views: Views = {}
        notes: list[str] = []
        describe, said = describer(base) if describer else None, ""
        drawn = _NONE
        if base in self._encoders:
            views["learned"], drawn = self._learned(self._encoders[base].images([image])[0], base, where)
        elif describe is None:
            raise ResourceError(
                f"pictures need a learned encoder for {base}; train one: python -m loracomp.training.encoder"
            )
        if describe is not None:
            said = describe(image)
            asked, missing = self._asked(said, base, where, words=True)
            views |= asked
            notes = [f"the picture was searched for by the words {said!r}", *missing]
        return self._fused(views, k, base, self._signs(said, base, drawn, seen=True), notes)

    def like(self, adapter: str, k: int = 10, where: Filter | None = None) -> Answer:
        """Adapters like one of the index (by id, path or name) or like a file, itself left out.

        Raises:
            FormatError: A file that cannot be read.
            UsageError: Neither in the index nor a file.
        """
        row, itself = self._row_of(adapter)
        limits = both(where, Compare("base", "=", row["base"]))
        without = both(limits, Compare("id", "!=", itself)) if itself else limits
        views = {"update": self._nearest("update", row["v_update"], without)}
        learned = bool(row["learned"]) and making.was_drawn(row)  # of weights alone updates tell more
        for space, there in (("hears", row["heard"]), ("says", row["heard"]), ("learned", learned)):
            if there:
                views[space] = self._nearest(space, row[f"v_{space}"], without)
        return self._fused(views, k, str(row["base"]), None)

    def _row_of(self, adapter: str) -> tuple[Row, str]:
        path = Path(adapter).expanduser()
        collection = self._collection
        if not path.is_file():
            found = collection.find(adapter)["id"]
            return collection.index.get([found])[0], found
        encoded = encode_file(path, banks=collection.banks)
        base = encoded.facts.base
        return making.rows([encoded], base, collection.banks, collection.encoders)[0], encoded.facts.id

    def _commonest(self, where: Filter | None) -> str:
        counts: dict[str, int] = {}
        for row in self._collection.index.scan(both(where), ("base",)):
            counts[row["base"]] = counts.get(row["base"], 0) + 1
        if not counts:
            if self._collection.index.stats()["rows"]:
                return "glyph"
            raise UsageError(
                f"{self._collection.folder}: the index is empty; loracomp index build DIR --index …"
            )
        return max(sorted(counts), key=lambda name: counts[name])

    def state(self, query: str, base: str) -> Tensor:
        """The centered text state of a query, shape (d,)."""
        if base not in self._states:
            folder = self._folders.get(base) or shipped_folder(base)
            if folder is None:
                raise ResourceError(f"{base}: its text encoder is needed; name its folder with --base-folder")
            self._states[base] = text_states(base, folder)
        return self._collection.banks[base].center(self._states[base]([query]).float())[0]

    def _heard(self, query: str, base: str, where: Filter) -> list[tuple[str, float]]:
        state = self.state(query, base)
        hits = self._collection.index.search("hears", hearing.query_vector(state).tolist(), CANDIDATES, where)
        rows = self._collection.index.get([hit.id for hit in hits])
        if not rows:
            return []
        probes = torch.stack([making.probes(row, len(state)) for row in rows])
        means, spreads = (torch.tensor([row[n] for row in rows]) for n in ("heard_mean", "heard_spread"))
        found = hearing.scores(probes, means, spreads, state[None])[0]
        pairs = [(row["id"], float(score)) for row, score in zip(rows, found, strict=True)]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    def _learned(
        self, vector: Tensor, base: str, where: Filter | None
    ) -> tuple[list[tuple[str, float]], frozenset[str]]:
        """The nearest to a query's vector, and which of them were drawn with."""
        hits = self._collection.index.search("learned", vector.tolist(), CANDIDATES, _limits(base, where))
        return [(h.id, h.score) for h in hits], frozenset(h.id for h in hits if making.was_drawn(h.row))

    def _nearest(self, space: str, vector: Any, where: Filter) -> list[tuple[str, float]]:
        hits = self._collection.index.search(space, np.asarray(vector).tolist(), CANDIDATES, where)
        return [(hit.id, hit.score) for hit in hits]

    def _fused(
        self,
        views: Views,
        k: int,
        base: str,
        signs: Signs | None,
        notes: Sequence[str] = (),
    ) -> Answer:
        """The views as one answer; without ``signs`` as sure as its update's cosine."""
        scores, places = ordered(views, signs)
        best = sorted(scores, key=lambda id_: (-scores[id_], id_))[:k]
        rows = {row["id"]: row for row in self._collection.index.get(best)}
        version = self._collection.index.stats()["version"]
        shown = [i for i in best if i in rows]
        hits = tuple(Hit(i, scores[i], version, without_vectors(rows[i]), places[i]) for i in shown)
        used = tuple(name for name, found in views.items() if found)
        sure = [0.0]
        if hits:
            said = hits[0].explain
            sure += [said.get("update", 0.0)] if signs is None else signs(hits[0].id, said).values()
        return Answer(hits, used, base, max(sure), tuple(notes))

    def _signs(self, query: str, base: str, drawn: frozenset[str], seen: bool = False) -> Signs:
        """How sure the views are; of an encoder that saw a picture, whatever words the query has."""
        encoder, words = self._encoders.get(base), self._words
        return Signs(
            self._collection.index.stats()["rows"],
            None if encoder is None else encoder.confidence,
            1.0 if encoder is None or seen else encoder.knows(query),
            None if words is None else lambda id_: words.coverage(query, id_),
            drawn,
        )


def _limits(base: str, where: Filter | None) -> Filter:
    return both(where, Compare("base", "=", base))


def without_vectors(row: Row) -> Row:
    """A row's columns as hits carry them."""
    return {name: value for name, value in row.items() if not name.startswith("v_") and name != "probes"}
