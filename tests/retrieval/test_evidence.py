"""Views of a search together: what a p-value can say, independent signs, silence of what knows nothing."""

from __future__ import annotations

import pytest

from loracomp.retrieval.evidence import NAMED, PRIOR, UNDRAWN, Signs, likely, ordered, together


def test_a_p_value_says_less_than_it_seems_to() -> None:
    assert likely(0.5) == likely(0.0) == 0
    assert 0.2 < likely(0.9) < 0.5
    assert likely(0.95) < likely(0.99) < likely(0.999) < likely(1.0) < 1
    grid = [(n + 0.5) / 10_000 for n in range(10_000)]
    odds = [likely(c) / (1 - likely(c)) for c in grid]
    assert sum(odds) / len(odds) < PRIOR * 3


def test_signs_add_up_and_silence_changes_nothing() -> None:
    assert together([]) == 0
    assert together([0.3, 0.0]) == pytest.approx(0.3)
    assert together([0.5, 0.5]) == pytest.approx(0.75)


def test_who_is_sure_comes_before_who_ranks_high() -> None:
    views = {"learned": [("a", 0.2), ("b", 0.1), ("c", 0.0)], "hears": [("c", 6.0), ("a", 0.1), ("b", 0.0)]}
    by_rank, places = ordered(views)
    assert max(by_rank, key=by_rank.__getitem__) == "a"
    assert places["c"] == {"learned": 0.0, "learned_rank": 3, "hears": 6.0, "hears_rank": 1}
    scores, _ = ordered(views, Signs(3, learned=lambda cosine: cosine, drawn="abc"))
    assert sorted(scores, key=lambda id_: -scores[id_]) == ["c", "a", "b"]
    assert all(0 <= score < 1.01 for score in scores.values())


def test_an_encoder_that_knows_no_word_of_a_query_is_silent() -> None:
    views = {"learned": [("a", 0.9), ("b", 0.1)], "hears": [("b", 0.2), ("a", 0.1)]}
    told, deaf = (Signs(50, learned=lambda cosine: cosine, known=known, drawn="a") for known in (1.0, 0.0))
    assert next(iter(sorted(ordered(views, told)[0].items(), key=lambda item: -item[1])))[0] == "a"
    scores, _ = ordered(views, deaf)
    assert scores["b"] > scores["a"]
    assert deaf("a", {"learned": 0.9}) == {"learned": 0.0}
    assert told("a", {"learned": 0.9}) == {"learned": 0.9}
    assert told("b", {"learned": 0.9}) == pytest.approx({"learned": 0.9 * UNDRAWN})
    assert Signs(5, coverage=lambda id_: 1.0)("a", {"words": 3.0}) == {"words": NAMED}
