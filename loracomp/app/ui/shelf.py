"""The gallery of adapters: one page of tiles, filters above it, a pager below."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from loracomp.app.adapter_rows import AdapterRow, Page
from loracomp.app.ui.markup import Markup, button, empty, join, node
from loracomp.app.ui.sources import thumbnail

PAGE = 18


def tiles(rows: Iterable[AdapterRow], picked: Collection[str], act: str = "pick") -> Markup:
    """A page of adapters; pressed tiles are those in ``picked``."""
    return node("div", *(_tile(row, row.id in picked, act) for row in rows), cls="lc-gallery lc-strip")


def shelf(
    page: Page, picked: Collection[str], filtered: bool, reading: bool = False, act: str = "pick"
) -> Markup:
    """Tiles and pager of what was found, or why there is nothing."""
    if not page.rows:
        if reading:
            return empty("Reading the library", "Adapters show up here in a moment.")
        if filtered:
            return empty("Nothing fits", "No adapter answers to this search and these filters; widen them.")
        return empty("No adapters yet", "Import a file in Library, or train one in Train; it shows up here.")
    return join([tiles(page.rows, picked, act), pager(page.page, page.pages, page.total)])


def pager(number: int, pages: int, total: int, what: str = "adapter") -> Markup:
    """Back and forth between pages, counted from 1; the total alone where there is one page."""
    count = f"{total} {what}{'' if total == 1 else 's'}"
    if pages <= 1:
        return node("p", count, cls="lc-quiet lc-pager", role="status")
    return node(
        "div",
        button("Back", "page", cls="lc-small", data_page=number - 1, disabled=number <= 1),
        node("span", f"page {number} of {pages}, {count}", cls="lc-quiet", role="status"),
        button("Next", "page", cls="lc-small", data_page=number + 1, disabled=number >= pages),
        cls="lc-pager",
    )


def face(name: str, source: str | None, side: int = 256) -> Markup:
    """A thumbnail, or the first letters where there is none."""
    if source:
        return node("img", src=source, alt="", loading="lazy", width=side, height=side)
    return node("span", name[:2], cls="lc-blank", aria_hidden="true")


def _tile(row: AdapterRow, picked: bool, act: str) -> Markup:
    words = ", ".join(row.triggers) or row.base
    return node(
        "button",
        face(row.name, thumbnail(row)),
        node("span", row.name, cls="lc-name", title=row.name),
        node("span", words, cls="lc-sub", title=words),
        type="button",
        data_act=act,
        data_id=row.id,
        cls="lc-tile",
        aria_pressed="true" if picked else "false",
        aria_label=f"{row.name}, {words}",
    )
