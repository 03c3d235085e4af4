"""The shipped artwork: what it says, what it weighs, and that truths are what the artists drew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluation.world import NAMES, artwork

from loracomp.errors import ResourceError
from loracomp.evaluation.artwork import SHIPPED, open_artwork, read_names, side_by_side
from loracomp.evaluation.cells import PROTOCOLS, Cell, choose
from loracomp.evaluation.glyph_judge import SHIPPED as JUDGE
from loracomp.evaluation.judge import Judge, open_judge
from loracomp.evaluation.scores import score
from loracomp.training.glyph.filters import FILTER_PHRASES, FILTERS, OWN_PAPER
from loracomp.training.glyph.packages import ART_SETS, UNSEEN_STYLES
from loracomp.training.glyph.palette import COLORS
from loracomp.training.glyph.splits import unseen_subjects

REAL = open_artwork(FILTERS)


def test_names_agree_with_the_training_recipe() -> None:
    names = read_names()
    assert set(names.subjects) == unseen_subjects()
    styles = {look.name: look.phrase for look in names.looks.values() if not look.filter}
    assert styles == {art.style: art.phrase for art in ART_SETS if not art.seen}
    filters = {look.name: look for look in names.looks.values() if look.filter}
    assert {name: look.phrase for name, look in filters.items()} == FILTER_PHRASES
    assert {name for name, look in filters.items() if look.paper} == OWN_PAPER
    assert dict(names.colours) == COLORS
    assert set(names.tiles) == {names.plain, *UNSEEN_STYLES}
    assert names.plain not in names.looks


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 600_000
    about = (SHIPPED / "README.md").read_text()
    for art in ART_SETS:
        if (SHIPPED / f"{art.style}.webp").exists():
            assert art.package in about
            assert art.version in about


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_chosen_cell_has_a_truth(protocol: str) -> None:
    for cell in choose(protocol, REAL.names, lambda kind, name: True, 12):
        truth = REAL.truth(cell)
        assert truth.shape == (3, 128, 128)
        assert 0 <= float(truth.min()) <= float(truth.max()) <= 1
        assert float(truth.std()) > 0.02


def test_tiles_are_the_subjects_they_should_be() -> None:
    """One-color and gradient Fluent share their contours, so they agree best on the same subject."""
    slugs = ["bicycle", "circus-tent", "cloud", "light-bulb", "violin", "watermelon"]
    masks = {}
    for style in ("mono", "fluent"):
        cells = [Cell("1+1", (slug,), style, "", "green") for slug in slugs]
        rim = torch.tensor(REAL.names.colours["green"])[:, None, None] / 255
        masks[style] = (
            torch.stack([(REAL.truth(c) - rim).abs().amax(0) > 0.1 for c in cells]).flatten(1).float()
        )
    both = masks["mono"] @ masks["fluent"].T
    union = masks["mono"].sum(1)[:, None] + masks["fluent"].sum(1)[None] - both
    assert (both / union).argmax(1).tolist() == list(range(len(slugs)))


def test_two_subjects_stand_side_by_side() -> None:
    left, right = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    left[:, 0], left[:, 3] = 1, 1
    both = side_by_side(left, right)
    assert both.shape == (1, 4, 8, 8)
    assert both[0, :, 4, 1].tolist() == [1, 0, 0, 1]
    assert both[0, :, 4, 6].tolist() == [1, 1, 1, 1]
    assert float(both[0, 3, :2].sum() + both[0, 3, 6:].sum()) == 0


def test_filters_paint_the_plain_picture_or_the_style() -> None:
    plain = artwork().truth(Cell("1+1", ("thing-0",), "", "pixel", "white"))
    styled = artwork().truth(Cell("1+2", ("thing-0",), "mono", "pixel", "white"))
    bare = artwork().truth(Cell("1+1", ("thing-0",), "mono", "", "white"))
    assert torch.equal(plain, styled)
    assert not torch.equal(bare, styled)
    assert NAMES.plain == "noto"


def test_missing_artwork_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"names\.json"):
        open_artwork(FILTERS, tmp_path)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return open_judge("glyph")


@pytest.mark.skipif(not (JUDGE / "config.json").is_file(), reason="the judge is not built yet")
@pytest.mark.parametrize(
    ("protocol", "least"), [("1+1", 0.95), ("2+1", 0.85), ("1+2", 0.8), ("1+3", 0.8), ("2+3", 0.5)]
)
def test_the_shipped_judge_knows_the_artists_pictures(judge: Judge, protocol: str, least: float) -> None:
    assert set(judge.vocabulary.subjects) >= set(REAL.names.subjects)
    assert set(judge.vocabulary.styles) >= set(REAL.names.looks)
    assert set(judge.vocabulary.colours) >= set(REAL.names.colours)
    cells = choose(protocol, REAL.names, lambda kind, name: True, 24)
    found = [score(judge, REAL, cell, REAL.truth(cell)[None]) for cell in cells]
    for name, floor in (("subject", least), ("style", 0.95), ("background", 0.95)):
        values = [one[name][0] for one in found if one[name][0] is not None]
        assert sum(value or 0 for value in values) >= floor * len(values), name
