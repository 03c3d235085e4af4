"""The language of ``--where``: what it means, and what it refuses."""

from __future__ import annotations

import pytest

from loracomp.errors import UnknownNameError, UsageError
from loracomp.retrieval.filters import All, Compare, Either, Not, parse


def test_and_binds_tighter_than_or_and_not_tightest() -> None:
    first, second = Compare("rank", "<=", 16), Compare("licence", "=", "MIT")
    third = Compare("name", "contains", "it's")
    assert parse("rank <= 16 or licence = 'MIT' and not name contains 'it''s'") == Either(
        (first, All((second, Not(third))))
    )
    assert parse("(RANK_ <= 1)".replace("RANK_", "rank")) == Compare("rank", "<=", 1)
    assert parse("licence in (\"MIT\", 'CC0-1.0') AND complete = TRUE") == All(
        (Compare("licence", "in", ("MIT", "CC0-1.0")), Compare("complete", "=", True))
    )
    assert parse("base not in ('glyph')") == Not(Compare("base", "in", ("glyph",)))
    assert parse("norm > -1e-3") == Compare("norm", ">", -1e-3)
    assert parse("norm > 2") == Compare("norm", ">", 2.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rank", "one of ="),
        ("rank <= ", "a value"),
        ("rank <= 'a'", "whole number"),
        ("rank <= 1.5", "whole number"),
        ("rank <= 99999999999999999999", "whole number"),
        ("norm < 1e999", "a number"),
        ("name = 3", "text in quotes"),
        ("complete > true", "true or false"),
        ("rank contains 1", "for words"),
        ("rank in 4", r"'\('"),
        ("rank = 4 rank = 5", "and, or"),
        ("rank = 4; DROP TABLE adapters", "cannot be read"),
        ("(rank = 4", r"'\)'"),
        ("'rank' = 4", "a column"),
        ("", "a column"),
        ("(" * 50 + "rank = 4" + ")" * 50, "deep"),
        ("not " * 50 + "rank = 4", "deep"),
        ("name = 'a\0b'", "text"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_the_place(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(text)


def test_unknown_columns_are_named_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="licence"):
        parse("license = 'MIT'")
