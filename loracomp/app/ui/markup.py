"""HTML from values: every text is escaped, so that no name in a stranger's file becomes markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

_VOID = frozenset({"img", "input", "br"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def node(tag: str, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        tag: Its name.
        *children: Elements, or text that is escaped; None is left out.
        **attributes: ``cls`` is ``class``; underscores become dashes; None and False are left out, True is
            the bare name.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = {"cls": "class", "for_": "for"}.get(name, name.replace("_", "-"))
        parts.append(name if value is True else f'{name}="{escape(str(value), quote=True)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if tag in _VOID else f"{opening}{join(children)}</{tag}>")


def join(children: Iterable[Any]) -> Markup:
    """Elements and texts, one after the other."""
    out = []
    for child in children:
        if child is None:
            continue
        out.append(child if isinstance(child, Markup) else escape(str(child), quote=False))
    return Markup("".join(out))


def notice(text: str, kind: str = "info") -> Markup:
    """A line that says what happened: ``info``, ``good``, ``warning``, or an ``error``, read out at once."""
    if not text:
        return Markup("")
    lead = {"error": "Not done: ", "warning": "Note: "}.get(kind, "")
    role = "alert" if kind == "error" else "status"
    return node("div", node("strong", lead) if lead else None, text, cls=f"lc-notice lc-{kind}", role=role)


def empty(title: str, text: str) -> Markup:
    """What stands where there is nothing yet: what would be here, and how it comes about."""
    return node("div", node("p", title, cls="lc-empty-title"), node("p", text), cls="lc-empty")


def button(text: Any, act: str, *, cls: str = "lc-button", **attributes: Any) -> Markup:
    """A button whose press reaches Python as ``act`` with its ``data_…`` attributes."""
    return node("button", text, type="button", data_act=act, cls=cls, **attributes)


def bullets(lines: Iterable[Any]) -> Markup:
    """Lines as a list; nothing for none."""
    items = [node("li", line) for line in lines]
    return node("ul", *items, cls="lc-list") if items else Markup("")


def table(head: Iterable[str], rows: Iterable[Iterable[Any]], caption: str) -> Markup:
    """A table in a box that scrolls sideways where the screen is narrow."""
    top = node("thead", node("tr", *(node("th", text, scope="col") for text in head)))
    body = node("tbody", *(node("tr", *(node("td", cell) for cell in row)) for row in rows))
    inner = node("table", node("caption", caption, cls="lc-hidden"), top, body)
    return node("div", inner, cls="lc-table", tabindex="0", role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values, one pair a line."""
    rows = [
        node("div", node("dt", name), node("dd", value)) for name, value in pairs if value not in ("", None)
    ]
    return node("dl", *rows, cls="lc-facts")
