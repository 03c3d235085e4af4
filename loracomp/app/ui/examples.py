"""A prompt to begin with, from the trigger words of what was picked."""

from __future__ import annotations

from collections.abc import Iterable

from loracomp.app.adapter_rows import AdapterRow
from loracomp.bases import BASES

_SUBJECT = "apple"


def example(rows: Iterable[AdapterRow]) -> str:
    """A prompt that shows what the adapters do: their subjects, then their styles.

    Styles and accelerators alone get an apple to draw; adapters that say nothing of themselves count as
    subjects.
    """
    rows = list(rows)
    styles = [row.triggers[0] for row in rows if row.kind == "style" and row.triggers]
    subjects = [row.triggers[0] for row in rows if row.kind not in ("style", "accelerator") and row.triggers]
    base = BASES.get(rows[0].base) if rows else None
    caption = base.caption if base else "{}"
    named = caption.format(" and ".join(f"{_article(one)} {one}" for one in subjects or [_SUBJECT]))
    return ", ".join([named, *styles])


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"
