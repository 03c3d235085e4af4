"""Cells: the same everywhere, balanced, split by subject, and only what adapters are there for."""

from __future__ import annotations

from collections import Counter

import pytest
from evaluation.world import NAMES, PAPER, SLUGS, everything
from hypothesis import given, settings
from hypothesis import strategies as st

from loracomp.errors import UnknownNameError
from loracomp.evaluation.cells import PROTOCOLS, choose, plainly, prompt, split_of

ALL = everything()
SIZES = {"1+1": (1, 2), "2+1": (2, 3), "1+2": (1, 3), "1+3": (1, 4), "2+3": (2, 5)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_has_its_number_of_subjects_and_adapters(protocol: str) -> None:
    cells = choose(protocol, NAMES, ALL.has, 48)
    assert cells
    assert {(len(cell.subjects), len(cell.parts)) for cell in cells} == {SIZES[protocol]}
    assert len({cell.id for cell in cells}) == len(cells)
    assert all(cell.protocol == protocol for cell in cells)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_shorter_choice_is_the_beginning_of_a_longer_one(protocol: str) -> None:
    assert choose(protocol, NAMES, ALL.has, 24)[:9] == choose(protocol, NAMES, ALL.has, 9)


def test_looks_and_subjects_are_taken_evenly() -> None:
    cells = choose("1+1", NAMES, ALL.has, 24)
    looks = Counter(cell.look for cell in cells)
    subjects = Counter(cell.subjects[0] for cell in cells)
    assert set(looks.values()) == {6}
    assert set(subjects.values()) == {2}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_splits_share_no_subject_and_lose_no_cell(protocol: str) -> None:
    parts = {split: choose(protocol, NAMES, ALL.has, 10**6, split) for split in ("test", "validation")}
    subjects = [{slug for cell in cells for slug in cell.subjects} for cells in parts.values()]
    assert subjects[0]
    assert not subjects[0] & subjects[1]
    assert sum(map(len, parts.values())) == len(choose(protocol, NAMES, ALL.has, 10**6))


def test_a_quarter_of_many_subjects_is_for_validation() -> None:
    share = sum(split_of([f"name-{n}"]) == "validation" for n in range(2000)) / 2000
    assert 0.22 < share < 0.28
    assert split_of(["a", "a"]) == split_of(["a"])


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(sorted(ALL.members)), min_size=1), st.sampled_from(PROTOCOLS))
def test_only_available_adapters_are_used(parts: set[tuple[str, str]], protocol: str) -> None:
    cells = choose(protocol, NAMES, lambda kind, name: (kind, name) in parts, 50)
    assert all(part in parts for cell in cells for part in cell.parts)


def test_paper_has_no_background_and_other_cells_have_one() -> None:
    cells = choose("1+1", NAMES, ALL.has, 48)
    assert {cell.look for cell in cells if not cell.background} == {PAPER}
    assert {cell.background for cell in cells if cell.look != PAPER} == {"white", "green", "orange"}
    assert all(cell.background not in ("", "white") for cell in choose("1+3", NAMES, ALL.has, 48))


def test_prompts_name_every_part_in_order() -> None:
    cell = next(c for c in choose("2+3", NAMES, ALL.has, 48) if c.background == "green")
    first, second = (NAMES.subjects[slug] for slug in cell.subjects)
    start = f"a {first} emoji and a {second} emoji side by side, "
    style = NAMES.looks[cell.style].phrase
    assert prompt(cell, plainly(NAMES)) == f"{start}{style}, pixel art style, green background"


def test_unknown_protocols_and_splits_are_refused() -> None:
    with pytest.raises(UnknownNameError):
        choose("3+1", NAMES, ALL.has)
    with pytest.raises(UnknownNameError):
        choose("1+1", NAMES, ALL.has, split="train")


def test_choices_do_not_depend_on_the_order_of_the_names() -> None:
    turned = NAMES.__class__(
        dict(sorted(NAMES.subjects.items(), reverse=True)), NAMES.looks, NAMES.colours, "noto", NAMES.tiles
    )
    for protocol in ("1+1", "2+1"):
        assert choose(protocol, turned, ALL.has, 24) == choose(protocol, NAMES, ALL.has, 24)
    assert len(SLUGS) == 12
