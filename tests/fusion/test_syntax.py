"""Adapters as users write them: what is read, what is refused and where, and that print and read agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loracomp.errors import LoracompError, UsageError
from loracomp.fusion import Curve, Profile, Program
from loracomp.fusion.strengths import Strength
from loracomp.fusion.syntax import Term, parse_settings, parse_term, split_prompt

LATE = Curve(((0, 0), (0.3, 1)))
finite = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: x + 0.0)
shares = st.floats(0, 1, exclude_max=True)
curves = st.builds(
    lambda places, values, axis, shape: Curve(tuple(zip(sorted(places), values, strict=False)), axis, shape),
    st.lists(shares, min_size=1, max_size=5, unique=True),
    st.lists(st.floats(-2, 2), min_size=5, max_size=5),
    st.sampled_from(["run", "step", "sigma"]),
    st.sampled_from(["constant", "linear"]),
)


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("mono", Term("mono")),
        ("mono:0.8", Term("mono", 0.8)),
        ("dir/mono.safetensors:-1", Term("dir/mono.safetensors", -1.0)),
        ("C:\\loras\\mono.safetensors", Term("C:\\loras\\mono.safetensors")),
        ("mono@0.3..1", Term("mono", 1.0, Profile(LATE))),
        ("mono:0@0..0.3,1@0.3..1", Term("mono", 1.0, Profile(LATE))),
        ("mono:0.5@0.2..0.6", Term("mono", 0.5, Profile(Curve(((0, 0), (0.2, 1), (0.6, 0)))))),
        ("mono:0.4@..0.5,0.8@0.5..", Term("mono", 0.8, Profile(Curve(((0, 0.5), (0.5, 1)))))),
        ("mono:-1@..0.5,0.5@0.5..", Term("mono", -1.0, Profile(Curve(((0, 1), (0.5, -0.5)))))),
        ("mono:1@step=5..10", Term("mono", 1.0, Profile(Curve(((0, 0), (5, 1), (10, 0)), "step")))),
        ("mono:1@sigma=3..0.5", Term("mono", 1.0, Profile(Curve(((0, 0), (0.5, 1), (3, 0)), "sigma")))),
        ("mono:0@0,2@0.5", Term("mono", 2.0, Profile(Curve(((0, 0), (0.5, 1)), shape="linear")))),
        ("mono:0.8@0..1", Term("mono", 0.8)),
        ("mono:0.8:down=0.5:up.1=0", Term("mono", 0.8, Profile(blocks={"down": 0.5, "up.1": 0}))),
        ("mono:1:text=0.5:uncond=0:rank=8", Term("mono", 1.0, Profile(None, {}, 0.0, 0.5, 8))),
        ("mono:1:box=0,0,0.5,1", Term("mono", 1.0, Profile(box=(0, 0, 0.5, 1)))),
        # A1111: text encoders first, then the denoiser, then ranks.
        ("mono:0.5:1", Term("mono", 1.0, Profile(text=0.5))),
        ("mono:0.5:1:16", Term("mono", 1.0, Profile(text=0.5, ranks=16))),
        ("mono:unet=0.5:te=1", Term("mono", 0.5, Profile(text=2.0))),
        ("mono:te=0.5", Term("mono", 0.5)),
        ("mono:0.7:0", Term("mono", 0.7, silent=True)),
        ("mono:0:0", Term("mono", 0.0)),
        # The extension counts steps from 1 and stops before the one it names.
        ("mono:1:start=10", Term("mono", 1.0, Profile(Curve(((0, 0), (9, 1)), "step")))),
        ("mono:1:stop=10", Term("mono", 1.0, Profile(Curve(((0, 1), (9, 0)), "step")))),
        ("mono:1:step=5-10", Term("mono", 1.0, Profile(Curve(((0, 0), (4, 1), (9, 0)), "step")))),
        ("mono:1:stop=0.4", Term("mono", 1.0, Profile(Curve(((0, 1), (0.4, 0)))))),
        ("mono:1:stop=1", Term("mono", 0.0)),
        ("mono:1:lbw=MIDD:stop=3", Term("mono", 1.0, Profile(Curve(((0, 1), (2, 0)), "step")), "MIDD")),
        ("mono:1:INALL", Term("mono", lbw="INALL")),
        ("mono:1:1:0,0,0,0,0,0,0,0,0,1,1,1", Term("mono", lbw="0,0,0,0,0,0,0,0,0,1,1,1")),
    ],
)
def test_a_term_means_what_it_says(text: str, term: Term) -> None:
    assert parse_term(text) == term
    assert parse_term(str(term)) == term
    assert parse_settings(term.source, term.settings) == term


@pytest.mark.parametrize(
    ("text", "says", "column"),
    [
        ("mono:strong", "weight 'strong' is not a number", 6),
        ("mono:", "weight '' is not a number", 6),
        ("mono:nan", "weight 'nan' is not a number", 6),
        (":0.8", "no adapter before the strength", 1),
        ("m:1@0..x", "place 'x' is not a number", 8),
        ("m:0.5@0.3..0.2", "range 0.3..0.2 is empty", 7),
        ("m:1@0..2", "for steps write @step=0..2", 5),
        ("m:1@0..0.5,1@0.4..1", "range 0.4..1 overlaps another one", 14),
        ("m:1@0,1@0.2..1", "ranges and points in one curve", 9),
        ("m:0.5,0.3", "'0.5' has no range", 3),
        ("m:1@foo=3..4", "no axis 'foo'", 5),
        ("m:1@step=0..3,1@sigma=3..", "sigma and step in one curve", 3),
        ("m:1:dwon=3", "no setting 'dwon'; did you mean down?", 5),
        ("m:1:down=x", "down 'x' is not a number", 10),
        ("m:1:2:3:4", "'4' has no place here", 9),
        ("m:1:te=1:te=2", "te is set twice", 10),
        ("m:1:2:te=1", "te is set twice", 10),
        ("m:1@0..0.5:1", "the text encoders run once", 3),
        ("m:1:rank=0.5", "rank '0.5' is not a whole number", 10),
        ("m:1:box=0,0,1", "is not LEFT,TOP,RIGHT,BOTTOM", 9),
        ("m:1:box=1,0,0,1", "needs left < right", 9),
        ("m:1@0..0.5:stop=3", "a curve and stop= at once", 3),
        ("m:1:step=5", "write step=5-10", 10),
        ("m:1:start=0.2:stop=9", "both steps or both shares", 11),
    ],
)
def test_a_message_points_at_the_place(text: str, says: str, column: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse_term(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"--lora {text}: ")
    assert f"(column {column})" in str(caught.value)


@settings(deadline=None)
@given(finite, st.none() | curves)
def test_what_is_printed_reads_as_the_same_strengths(weight: float, curve: Curve | None) -> None:
    once = parse_settings("m", str(Strength.of(weight, curve)))
    again = parse_settings("m", once.settings)
    assert again == once
    sigmas = torch.linspace(1.2, 0, 9)
    expected = torch.full((9,), weight) if curve is None else weight * curve.values(9, sigmas)
    found = Program(weights=(once.weight,), profiles=(once.profile,)).table(9, sigmas).gates[:, 0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-30)


pieces = st.lists(st.tuples(finite, shares), min_size=1, max_size=4, unique_by=lambda piece: piece[1])


@settings(deadline=None)
@given(
    pieces,
    st.booleans(),
    st.dictionaries(st.sampled_from(["down", "up.1.0", "mid", "*"]), finite),
    finite,
    finite,
    st.integers(0, 99),
)
def test_any_term_survives_its_own_print(
    said: list[tuple[float, float]],
    points: bool,
    blocks: dict[str, float],
    text: float,
    uncond: float,
    ranks: int,
) -> None:
    ordered = sorted(said, key=lambda piece: piece[1])
    ends = [*(place for _, place in ordered[1:]), 1.0]
    parts = [f"{v!r}@{a!r}" + ("" if points else f"..{b!r}") for (v, a), b in zip(ordered, ends, strict=True)]
    term = parse_term("m:" + ",".join(parts))
    term = replace(term, profile=replace(term.profile, blocks=blocks, text=text, unconditional=uncond))
    term = replace(term, profile=replace(term.profile, ranks=ranks))
    assert parse_term(str(term)) == term


@settings(deadline=None)
@given(st.text(alphabet="mono:@.,=0123456789-lbwsteprunix<>", max_size=25))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        term = parse_term(text)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    assert parse_settings(term.source, term.settings) == term


def test_tags_leave_the_prompt() -> None:
    words, found = split_prompt(
        "a <lora:cat:0.5> in  the <lora:wet paint> rain <lora:x:0.5:1:lbw=OUTS:stop=9>"
    )
    assert words == "a in the rain"
    assert found[:2] == (Term("cat", 0.5), Term("wet paint"))
    assert found[2] == parse_term("x:0.5:1:lbw=OUTS:stop=9")
    with pytest.raises(UsageError, match=r"<lora:cat:x>: weight 'x' is not a number \(column 11\)"):
        split_prompt("a <lora:cat:x>")
    with pytest.raises(UsageError, match="no adapter in the tag"):
        split_prompt("a <lora:>")


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_prompt_is_split_or_refused(prompt: str) -> None:
    try:
        words, _ = split_prompt(prompt)
    except LoracompError:
        return
    assert "<lora:" not in words or ">" not in words.split("<lora:", 1)[1]
