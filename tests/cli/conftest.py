"""A base that commands share."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from loracomp.loading import open_base

open_once = cache(open_base)


@pytest.fixture
def glyph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read glyph from disk once, not for every image; other bases they always read."""

    def opened(source: str = "glyph", **options: Any) -> Any:
        return (open_once if source == "glyph" else open_base)(source, **options)

    for home in ("loracomp.drawing", "loracomp.loading"):
        monkeypatch.setattr(f"{home}.open_base", opened)
