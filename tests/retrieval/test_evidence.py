"""Views of a search together: what a p-value can say, independent signs, silence of what knows nothing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from loracomp.retrieval.evidence import PRIOR, likely, ordered, together


def test_a_p_value_says_less_than_it_seems_to() -> None:
    assert likely(0.5) == likely(0.0) == 0
    assert 0.2 < likely(0.9) < 0.5
    assert likely(0.95) < likely(0.99) < likely(0.999) < likely(1.0) < 1
    # Over everything that unrelated adapters say, the factor is about 1.
    grid = [(n + 0.5) / 10_000 for n in range(10_000)]
    odds = [likely(c) / (1 - likely(c)) for c in grid]
    assert sum(odds) / len(odds) < PRIOR * 3


def test_signs_add_up_and_silence_changes_nothing() -> None:
    assert together([]) == 0
    assert together([0.3, 0.0]) == pytest.approx(0.3)
    assert together([0.5, 0.5]) == pytest.approx(0.75)


def test_who_is_sure_comes_before_who_ranks_high() -> None:
    views = {"learned": [("a", 0.3), ("b", 0.2), ("c", 0.1)], "hears": [("c", 6.0), ("a", 0.1), ("b", 0.0)]}
    table = {"a": {"learned": 0.15, "hears": 0.1}, "b": {"learned": 0.1, "hears": 0.1},
             "c": {"learned": 0.05, "hears": 0.999}}  # fmt: skip

    def chances(id_: str, said: Mapping[str, float]) -> dict[str, float]:
        return {name: table[id_][name] for name in said if not name.endswith("_rank")}

    by_rank, places = ordered(views)
    assert max(by_rank, key=by_rank.__getitem__) == "a"
    assert places["c"] == {"learned": 0.1, "learned_rank": 3, "hears": 6.0, "hears_rank": 1}
    scores, _ = ordered(views, chances)
    assert sorted(scores, key=lambda id_: -scores[id_]) == ["c", "a", "b"]
    assert all(0 <= score < 1.01 for score in scores.values())
