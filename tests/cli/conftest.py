"""A base that commands share."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from loracomp.loading import open_base

open_once = cache(open_base)


@pytest.fixture
def glyph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """``loracomp compose`` reads glyph from disk once, not for every image; other bases it always reads."""

    def opened(source: str = "glyph", **options: Any) -> Any:
        return (open_once if source == "glyph" else open_base)(source, **options)

    monkeypatch.setattr("loracomp.drawing.open_base", opened)
