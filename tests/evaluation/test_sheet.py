"""Contact sheets: every picture is where its row and column say, and labels touch no picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loracomp.evaluation.sheet import EMPTY, contact_sheet

LABELS = st.text(alphabet="abc defghij", max_size=60)


def picture(color: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, color)


def places(sheet: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((np.asarray(sheet) == color).all(-1))


@settings(max_examples=25, deadline=None)
@given(st.lists(LABELS, min_size=1, max_size=4), st.lists(LABELS, min_size=1, max_size=4), LABELS)
def test_every_picture_is_whole_and_in_order(rows: list[str], columns: list[str], title: str) -> None:
    colors = {(r, c): (250, 10 + 20 * r, 10 + 20 * c) for r in range(len(rows)) for c in range(len(columns))}
    cells = [(name, [picture(colors[r, c]) for c in range(len(columns))]) for r, name in enumerate(rows)]
    sheet = contact_sheet(cells, columns, title=title, cell=32, label_width=60)
    found = {key: places(sheet, color) for key, color in colors.items()}
    assert all(len(spots) == 32 * 32 for spots in found.values())
    for row, column in colors:
        if row:
            assert found[row, column][0][0] > found[row - 1, column][-1][0]
        if column:
            assert found[row, column][0][1] > found[row, column - 1][-1][1]


def test_missing_pictures_are_grey_cells() -> None:
    sheet = contact_sheet([("a", [picture((1, 2, 3)), None]), ("b", [])], ["x", "y"], cell=32)
    assert len(places(sheet, EMPTY)) == 3 * 32 * 32


def test_proportions_are_kept() -> None:
    spots = places(contact_sheet([("", [picture((9, 9, 200), (64, 32))])], cell=32), (9, 9, 200))
    assert tuple(np.ptp(spots, axis=0) + 1) == (16, 32)


def test_a_row_longer_than_the_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        contact_sheet([("a", [picture((0, 0, 0))] * 2)], ["x"])
    with pytest.raises(ValueError, match="do not fit"):
        contact_sheet([])
