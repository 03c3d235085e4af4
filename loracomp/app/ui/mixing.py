"""Compose, the middle: picking adapters, their words and masks, the automatic choice, the diagnosis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from loracomp.app.requests import AdapterUse
from loracomp.app.ui import masks
from loracomp.app.ui.compose import NO_PICKS, Compose
from loracomp.app.ui.diagnosis import shown
from loracomp.app.ui.examples import example as example_of
from loracomp.app.ui.finding import turned, wait_for_index
from loracomp.app.ui.form import methods
from loracomp.app.ui.indexing import indexed
from loracomp.app.ui.markup import Markup, bullets, node
from loracomp.app.ui.panel import data_of
from loracomp.app.ui.picks import checked, pick, with_word
from loracomp.app.ui.session import telling

QUIET: dict[str, Any] = {"show_progress": "hidden"}


def connect(app: Any, made: Compose, drawn: dict[str, Any]) -> None:
    """Connects the picks; ``drawn`` draws the gallery again."""
    form, finder = made.form, made.finder

    @telling(6)
    def press(picks: Any, prompt: str, example: str, page: int, event: gr.EventData) -> tuple[Any, ...]:
        data = data_of(event)
        if data.get("act") == "page":
            return gr.skip(), gr.skip(), gr.skip(), turned(event), gr.skip(), Markup("")
        picks, prompt, example = toggled(app, checked(picks), str(data.get("id")), prompt, example)
        return picks, prompt, example, page, no_picks(picks), Markup("")

    finder.gallery.click(
        press,
        inputs=[form.picks, form.prompt, form.example, finder.page],
        outputs=[form.picks, form.prompt, form.example, finder.page, made.none, made.said],
        trigger_mode="multiple",
        **QUIET,
    ).then(**drawn)
    _cards(app, made, drawn)
    _mask(made)
    _auto(app, made, drawn)
    _diagnose(app, made)


def toggled(
    app: Any, picks: list[dict[str, Any]], id_: str, prompt: str, example: str
) -> tuple[list[dict[str, Any]], str, str]:
    """Picks with an adapter added or removed; a prompt that is empty, or still ours, becomes its example."""
    if any(entry["id"] == id_ for entry in picks):
        picks = [entry for entry in picks if entry["id"] != id_]
    else:
        picks = [*picks, pick(app.library.get(id_))]
    if prompt.strip() and prompt.strip() != example.strip():
        return picks, prompt, example
    text = example_of(app.library.get(entry["id"]) for entry in picks) if picks else ""
    return picks, text, text


def no_picks(picks: list[Any]) -> Markup:
    """What stands above the cards."""
    return NO_PICKS if not picks else Markup("")


def _cards(app: Any, made: Compose, drawn: dict[str, Any]) -> None:
    form = made.form

    def act(prompt: str, picks: Any, event: gr.EventData) -> tuple[Any, ...]:
        data = data_of(event)
        word, id_ = str(data.get("word", "")), str(data.get("id", ""))
        name = next((entry["name"] for entry in checked(picks) if entry["id"] == id_), "")
        opened = data.get("act") == "mask"
        return (
            with_word(prompt, word) if data.get("act") == "word" else gr.skip(),
            no_picks(checked(picks)),
            gr.update(visible=True) if opened else gr.skip(),
            node("h2", f"Where {name} acts") if opened else gr.skip(),
            gr.update(value=masks.blank(), visible=True) if opened else gr.skip(),
            id_ if opened else gr.skip(),
        )

    box, title, editor, _, _ = made.mask
    form.picks.select(
        act,
        inputs=[form.prompt, form.picks],
        outputs=[form.prompt, made.none, box, title, editor, made.masked],
        trigger_mode="multiple",
        **QUIET,
    )
    finder = made.finder

    def like(page: int, mode: tuple[str, str], event: gr.EventData) -> tuple[Any, ...]:
        data = data_of(event)
        return (1, ("like", str(data.get("id")))) if data.get("act") == "like" else (page, mode)

    place = [finder.page, finder.mode]
    wait = wait_for_index(app, finder)
    form.picks.select(like, place, place, trigger_mode="multiple", **QUIET).then(**wait).then(**drawn)
    form.picks.change(
        lambda picks: gr.update(visible=len(checked(picks)) > 1), form.picks, made.check, **QUIET
    )


def _mask(made: Compose) -> None:
    form = made.form
    box, _, editor, keep, clear = made.mask

    def put(picks: Any, held: dict[str, str], id_: str, text: str) -> tuple[Any, ...]:
        changed = [entry | {"mask": bool(text)} if entry["id"] == id_ else entry for entry in checked(picks)]
        return changed, {**held, id_: text}, gr.update(visible=False)

    outputs = [form.picks, form.masks, box]
    keep.click(
        lambda picks, held, id_, value: put(picks, held, id_, masks.painted(value)),
        inputs=[form.picks, form.masks, made.masked, editor], outputs=outputs, **QUIET,
    )  # fmt: skip
    clear.click(
        lambda picks, held, id_: put(picks, held, id_, ""),
        inputs=[form.picks, form.masks, made.masked], outputs=outputs, **QUIET,
    )  # fmt: skip


def _auto(app: Any, made: Compose, drawn: dict[str, Any]) -> None:
    form = made.form

    @telling(6)
    def choose(prompt: str) -> tuple[Any, ...]:
        choice = app.finding.choose(prompt)
        asked = choice["request"]
        picks = [pick(app.library.get(use["id"]), use["weight"]) for use in asked["adapters"]]
        lines = bullets(choice["lines"])
        why = node("div", node("strong", "Why these"), lines, cls="lc-notice lc-info", role="status")
        return picks, asked["prompt"], methods(app, asked["method"]), no_picks(picks), why, Markup("")

    async def wait(prompt: str) -> AsyncIterator[Markup]:
        async for said in indexed(app, bool(prompt.strip())):
            yield said

    made.auto.click(wait, form.prompt, made.said, **QUIET).then(
        choose,
        inputs=form.prompt,
        outputs=[form.picks, form.prompt, form.method, made.none, made.why, made.said],
    ).then(**drawn)


def _diagnose(app: Any, made: Compose) -> None:
    form = made.form

    @telling(1)
    def look(picks: Any) -> Markup:
        uses = tuple(AdapterUse(id=entry["id"], weight=entry["weight"]) for entry in checked(picks))
        return shown(app.finding.diagnose(uses))

    made.check.click(look, inputs=form.picks, outputs=made.report)
