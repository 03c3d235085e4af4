"""Choosing adapters for a prompt: taken apart, searched, held against each other, explained.

Nothing is drawn here. Where no adapter helps, none is chosen: a span is left to the base unless its best
match stands out from what unrelated adapters would reach by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loracomp.adapter import Adapter
from loracomp.errors import FormatError
from loracomp.retrieval.filters import Compare, Filter, both
from loracomp.retrieval.index import Hit
from loracomp.retrieval.pairs import PairReport, pair
from loracomp.retrieval.search import Answer, Searcher
from loracomp.retrieval.spans import Span, spans

MOST = 3
THRESHOLD = 0.9
_CANDIDATES = 5

Open = Callable[[str], Adapter]
"""Opens the adapter at a path."""


@dataclass(frozen=True)
class Chosen:
    """One adapter that was chosen.

    Attributes:
        path: Its file.
        name: What it is called.
        id: Its key in the index.
        weight: Strength.
        span: The part of the prompt that it stands for.
        trigger: Trigger words that the prompt has to have.
        confidence: Probability that it is what the span means, in [0, 1].
        why: What spoke for it.
    """

    path: str
    name: str
    id: str
    weight: float
    span: str
    trigger: str
    confidence: float
    why: str


@dataclass(frozen=True)
class Choice:
    """What to compose for a prompt.

    Attributes:
        prompt: The prompt, with trigger words added where the chosen adapters need them.
        adapters: The adapters, at most three; none where nothing helps.
        method: How to compose them; empty for no adapter.
        left: Parts of the prompt that are left to the base, and why.
        rejected: Adapters that were found and not taken, and why.
        pairs: What the chosen do to each other.
        notes: What else should be known.
    """

    prompt: str
    adapters: tuple[Chosen, ...]
    method: str
    left: dict[str, str]
    rejected: dict[str, str]
    pairs: tuple[PairReport, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain JSON values."""
        return asdict(self) | {"pairs": [found.to_dict() for found in self.pairs]}

    def lines(self) -> list[str]:
        """The choice in words, a line each."""
        out = [f"{c.span!r}: {c.name}, weight {c.weight:g} ({c.why})" for c in self.adapters]
        out += [f"{span!r}: the base alone, {why}" for span, why in self.left.items()]
        out += [f"not taken: {name}, {why}" for name, why in self.rejected.items()]
        if self.adapters:
            out.append(f"method {self.method}: {self._reason()}")
        else:
            out.append("no adapter helps; the base draws alone")
        return [*out, *self.notes]

    def _reason(self) -> str:
        if len(self.adapters) == 1:
            return "one adapter has nothing to be composed with"
        if self.method == "lion":
            return "they change the same weights, so what they share is left to the first"
        return f"they are nearly independent (largest cosine {max(abs(p.cosine) for p in self.pairs):.2f})"


def choose(
    prompt: str,
    searcher: Searcher,
    open_adapter: Open,
    *,
    base: str | None = None,
    where: Filter | None = None,
    most: int = MOST,
    threshold: float = THRESHOLD,
) -> Choice:
    """Adapters, weights and method for a prompt.

    Quarantined and incomplete adapters never take part; nor does one that forms a suspicious pair with
    one that was chosen with more confidence.

    Args:
        prompt: What is to be drawn.
        searcher: Over the index.
        open_adapter: Opens an adapter by its path.
        base: Base they must be for; the commonest of the index where None.
        where: What else they must be.
        most: Adapters at most.
        threshold: Least confidence of a choice, in [0, 1].
    """
    allowed = both(where, Compare("quarantine", "=", 0), Compare("complete", "=", True))
    left: dict[str, str] = {}
    wanted: list[tuple[Span, Answer]] = []
    for span in spans(prompt):
        answer = searcher.text(span.text, _CANDIDATES, allowed, base)
        if answer.hits and answer.confidence >= threshold:
            wanted.append((span, answer))
        elif answer.hits:
            best = answer.hits[0].row["name"]
            left[span.text] = f"{best} comes nearest, with confidence {answer.confidence:.0%}"
        else:
            left[span.text] = "nothing was found"
    wanted.sort(key=lambda item: -item[1].confidence)
    taken, reports, rejected = _compatible(wanted, open_adapter, most, left)
    notes = dict.fromkeys(note for _, answer in wanted for note in answer.notes)
    method = "lion" if any(report.conflict for report in reports) else "merge"
    return Choice(
        prompt=_with_triggers(prompt, taken),
        adapters=tuple(taken),
        method=method if taken else "",
        left=left,
        rejected=rejected,
        pairs=tuple(reports),
        notes=(*notes, *(line for report in reports for line in report.warnings)),
    )


def _compatible(
    wanted: Sequence[tuple[Span, Answer]], open_adapter: Open, most: int, left: dict[str, str]
) -> tuple[list[Chosen], list[PairReport], dict[str, str]]:
    """The best of each span that goes together with those before it."""
    taken: list[Chosen] = []
    opened: list[Adapter] = []
    reports: list[PairReport] = []
    rejected: dict[str, str] = {}
    for span, answer in wanted:
        hit = answer.hits[0]
        if hit.id in {chosen.id for chosen in taken}:
            continue
        if len(taken) == most:
            left[span.text] = f"{most} adapters are taken already"
            continue
        try:
            adapter = open_adapter(hit.row["path"])
        except FormatError as error:
            rejected[hit.row["name"]] = str(error)
            continue
        found = [pair(adapter, other) for other in opened]
        bad = next((report for report in found if report.suspicious or report.cosine > 0.95), None)
        if bad is not None:
            rejected[hit.row["name"]] = f"with {bad.second}: {'; '.join(bad.warnings)}"
            continue
        taken.append(_chosen(span, hit, answer))
        opened.append(adapter)
        reports += found
    return taken, reports, rejected


def _chosen(span: Span, hit: Hit, answer: Answer) -> Chosen:
    views = [f"{name} {hit.explain[name]:.2f}" for name in answer.used if name in hit.explain]
    why = f"{', '.join(views)}; confidence {answer.confidence:.0%}"
    row = hit.row
    return Chosen(row["path"], row["name"], hit.id, 1.0, span.text, row["trigger"], answer.confidence, why)


def _with_triggers(prompt: str, taken: Sequence[Chosen]) -> str:
    """The prompt, and after it the first trigger word of each adapter that it does not have."""
    words = [chosen.trigger.split(",")[0].strip() for chosen in taken]
    missing = [word for word in dict.fromkeys(words) if word and word.lower() not in prompt.lower()]
    return ", ".join([prompt, *missing])
