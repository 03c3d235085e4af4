"""What the gallery of Compose shows: pages, words, pictures, and what is like an adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from loracomp.app.adapter_rows import Page
from loracomp.app.ui import shelf
from loracomp.app.ui.compose import Compose, Finder
from loracomp.app.ui.indexing import indexed
from loracomp.app.ui.markup import Markup, notice
from loracomp.app.ui.panel import data_of
from loracomp.app.ui.picks import checked
from loracomp.app.ui.session import telling, told, user_of
from loracomp.errors import LoracompError

ANY = "any"
SORTS = {"name": "name", "newest": "newest", "most used": "used"}
FOUND = 12
ALL = ("", "")


def connect(app: Any, made: Compose) -> Any:
    """Connects the gallery and gives the function that draws it, with its inputs and outputs."""
    finder = made.finder
    inputs = [
        finder.query, finder.tag, finder.licence, finder.sort, finder.compatible, finder.page, finder.mode,
        made.form.picks,
    ]  # fmt: skip
    outputs = [finder.gallery, finder.plain, finder.said]

    @telling(3)
    def show(
        query: str, tag: str, licence: str, sort: str, fits: bool, page: int, mode: tuple[str, str],
        picks: Any, request: gr.Request,
    ) -> tuple[Markup, Any, Markup]:  # fmt: skip
        picked = [entry["id"] for entry in checked(picks)]
        how, what = mode
        said = Markup("")
        if how:
            try:
                found = _found(app, how, what, user_of(request), fits)
            except LoracompError as error:
                return gr.skip(), gr.update(visible=True), told(error)
            said = notice("; ".join(found.notes)) if found.notes else said
        else:
            found = app.library.page(
                query=query, tag=_any(tag), licence=_any(licence), sort=SORTS.get(sort, "name"), page=page,
                compatible_with=base_of(app) if fits else "", usable=fits, size=shelf.PAGE,
            )  # fmt: skip
        narrowed = bool(query or _any(tag) or _any(licence) or how)
        return (
            shelf.shelf(found, picked, narrowed, not app.library.status()["adapters"]),
            gr.update(visible=bool(how)),
            said,
        )

    drawn = {
        "fn": show,
        "inputs": inputs,
        "outputs": outputs,
        "show_progress": "hidden",
        "trigger_mode": "always_last",
    }
    _narrowing(app, finder, drawn)
    made.form.picks.change(**drawn)
    return drawn


def wait_for_index(app: Any, finder: Finder) -> dict[str, Any]:
    """What goes before a gallery that only the index can fill."""

    async def wait(mode: tuple[str, str]) -> AsyncIterator[Markup]:
        async for said in indexed(app, bool(mode[0])):
            yield said

    return {"fn": wait, "inputs": finder.mode, "outputs": finder.said, "show_progress": "hidden"}


def _narrowing(app: Any, finder: Finder, drawn: dict[str, Any]) -> None:
    """Words filter while they are typed; Enter asks the index for their meaning."""

    def first() -> tuple[int, tuple[str, str]]:
        return 1, ALL

    def by_words(query: str) -> tuple[int, tuple[str, str]]:
        return 1, ("words", query.strip()) if query.strip() else ALL

    def by_picture(path: str | None) -> tuple[int, tuple[str, str]]:
        return 1, ("picture", path) if path else ALL

    place = [finder.page, finder.mode]
    quiet = {"show_progress": "hidden", "queue": True}
    for control in (finder.tag, finder.licence, finder.sort, finder.compatible):
        control.input(first, outputs=place, **quiet).then(**drawn)
    finder.query.input(first, outputs=place, trigger_mode="always_last", **quiet).then(**drawn)
    wait = wait_for_index(app, finder)
    finder.query.submit(by_words, finder.query, place, **quiet).then(**wait).then(**drawn)
    finder.picture.change(by_picture, finder.picture, place, **quiet).then(**wait).then(**drawn)
    finder.plain.click(
        lambda: ("", None, *first()), outputs=[finder.query, finder.picture, *place], **quiet
    ).then(**drawn)


def turned(event: gr.EventData) -> int:
    """The page that a press on the pager asks for."""
    try:
        return max(1, int(data_of(event).get("page", 1)))
    except (TypeError, ValueError):
        return 1


def _any(choice: str | None) -> str:
    return "" if not choice or choice == ANY else choice


def base_of(app: Any) -> str:
    """The base that adapters have to fit, where the library has some for it; empty for any."""
    base = str(app.library.ground.name)
    return base if base in app.library.facets()["base"] else ""


def _found(app: Any, how: str, what: str, user: str, fits: bool) -> Page:
    """The best answers of the index as one page."""
    base = base_of(app) if fits else ""
    if how == "words":
        return app.finding.words(what, base, FOUND)
    if how == "picture":
        sent = app.uploads.take(Path(what), "picture", user)
        return app.finding.picture(app.uploads.path(sent.id, user), base, FOUND)
    return app.finding.like(what, FOUND)
