"""Which method to take for given adapters, and why, from the interference report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loracomp.fusion.interference import Interference

SAME = 0.8
"""Cosine from which two adapters are taken to do the same thing."""
CONFLICT = 0.3
"""Cosine in a block from which their directions are taken apart; LiON's threshold too."""
IMBALANCE = 2.0
"""Ratio of norms from which the louder adapter is taken to drown the other."""
MANY = 3
"""Number of adapters from which a sum loses something whatever the report says."""


@dataclass(frozen=True)
class Advice:
    """A recommendation.

    Attributes:
        method: Composition method.
        reason: Why, in a sentence.
        warnings: What to know besides.
    """

    method: str
    reason: str
    warnings: tuple[str, ...] = ()


def advise(report: Interference) -> Advice:
    """The method for what the report shows; ``merge`` where nothing speaks against it.

    Methods that let adapters take turns or average their predictions are never advised: where the base does
    not know the subject, every prediction without the subject's adapter pulls the image elsewhere.

    On GlyphBench (``benchmarks/advice.py``) this is not measurably better than always ``lion`` or always
    ``merge``: neither cosines nor norms tell where lion gains. What holds on either half of the subjects is
    that lion keeps more subjects and merge more styles, which is said from three adapters on.
    """
    warnings = tuple(_warnings(report))
    for finding in (_same, _conflict, _imbalance):
        if found := finding(report):
            return Advice(*found, warnings)
    return Advice(
        "merge",
        "directions barely meet and norms are alike, so nothing speaks against the plain sum",
        warnings,
    )


def _same(report: Interference) -> tuple[str, str] | None:
    pair, value = _largest(report, report.whole.cosines, abs)
    if value is None or abs(value) < SAME:
        return None
    doing = "the same thing" if value > 0 else "opposite things"
    remedy = "leave one out, or halve their weights" if value > 0 else "leave one out"
    return "merge", f"{_both(report, pair)} do {doing} (cosine {value:.2f}); {remedy}"


def _conflict(report: Interference) -> tuple[str, str] | None:
    found = [(block, *_largest(report, block.cosines, abs)) for block in report.blocks]
    known = [(abs(value), block.name, pair) for block, pair, value in found if value is not None]
    size, name, pair = max(known, default=(0.0, "", (0, 1)))
    if size < CONFLICT:
        return None
    return "lion", f"{_both(report, pair)} pull along the same directions in {name} (cosine {size:.2f})"


def _imbalance(report: Interference) -> tuple[str, str] | None:
    # A weight that was chosen on purpose is no accident.
    pairs = zip(report.whole.norms, report.weights, strict=True)
    norms = [norm / abs(weight) if weight else 0.0 for norm, weight in pairs]
    low, high = min(norms), max(norms)
    if low <= 0 or high / low < IMBALANCE:
        return None
    loud, quiet = (report.adapters[norms.index(value)] for value in (high, low))
    return "lion", f"{loud} is {high / low:.1f} times as strong as {quiet} and would drown it"


def _warnings(report: Interference) -> list[str]:
    lines = [
        f"{_both(report, pair)} are called by the same words: {', '.join(words)}"
        for pair, words in report.collisions.items()
    ]
    text = next((block for block in report.blocks if block.name == "text"), None)
    if text and sum(norm > 0 for norm in text.norms) > 1:
        lines.append("more than one adapter changes the text encoder, so each reads the others' words too")
    lines += [
        f"{name} changes nothing at this weight"
        for name, norm in zip(report.adapters, report.whole.norms, strict=True)
        if norm == 0
    ]
    if len(report.adapters) >= MANY:
        lines.append(
            f"of {len(report.adapters)} adapters lion tends to keep a subject that merge loses, "
            "and merge a style that lion loses; draw one picture with each"
        )
    if report.whole.lost > 0.1:
        lines.append(
            f"a merged file of rank {report.rank} loses {report.whole.lost:.0%} of the sum's energy; "
            "give it more ranks"
        )
    return lines


def _largest(
    report: Interference, values: Sequence[float | None], size: Callable[[float], float]
) -> tuple[tuple[int, int], float | None]:
    """The pair with the largest value, and the value; None where none is known."""
    known = [
        (size(value), pair, value)
        for pair, value in zip(report.pairs, values, strict=True)
        if value is not None
    ]
    if not known:
        return report.pairs[0], None
    _, pair, value = max(known)
    return pair, value


def _both(report: Interference, pair: tuple[int, int]) -> str:
    return " and ".join(report.adapters[index] for index in pair)
