"""The left of Train: pictures to learn from, their captions, and what is worth mending."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from loracomp.app.datasets import Captioned, DataRow
from loracomp.app.ui.markup import Markup, bullets, button, empty, facts, join, node, notice
from loracomp.app.ui.panel import data_of, panel, plain
from loracomp.app.ui.session import telling, user_of
from loracomp.app.ui.shelf import pager
from loracomp.app.ui.sources import data_picture

QUIET: dict[str, Any] = {"show_progress": "hidden"}
PAGE = 12
NO_DATA = empty("No training data yet", "Upload pictures below; ten good ones are enough for a style.")
NOT_CHOSEN = empty("No data chosen", "Choose some above, or upload pictures.")


class Data:
    """Choice, upload, captions and check of training data.

    Args:
        app: What is running.
        resolution: Side of the base's images in pixels.
    """

    def __init__(self, app: Any, resolution: int) -> None:
        self.app, self.resolution = app, resolution
        self.page = gr.State(1)
        plain("<h2>Pictures</h2>", id="data-title")
        self.chosen = gr.Dropdown([], label="Training data", elem_id="data", filterable=False)
        with gr.Accordion("Upload pictures", open=False, elem_id="upload"):
            self.name = gr.Textbox(label="Name of the data", placeholder="my pictures", elem_id="data-name")
            self.files = gr.File(
                label="Pictures",
                file_count="multiple",
                file_types=["image"],
                height=170,
                elem_id="data-files",
            )
        self.said = plain(id="data-notice")
        self.report = plain(id="data-report")
        self.captions = panel(NOT_CHOSEN, id="captions")
        self._connect()

    def choices(self, chosen: str | None, request: gr.Request) -> Any:
        """The data that there are, the chosen one kept."""
        rows: list[DataRow] = self.app.datasets.list(user_of(request))
        named = [(f"{row.name} ({row.pictures})", row.id) for row in rows]
        if chosen and all(row.id != chosen for row in rows):
            return gr.update(choices=named, value=None)
        # Setting the value again would undo a choice that was made meanwhile.
        return gr.update(choices=named)

    def _connect(self) -> None:
        shown = [self.captions, self.report, self.said]

        @telling(3)
        def show(id_: str | None, page: int, request: gr.Request) -> tuple[Any, ...]:
            return (*self._view(id_, page, user_of(request)), Markup(""))

        self.chosen.change(lambda: 1, outputs=self.page, **QUIET).then(
            show, [self.chosen, self.page], shown, **QUIET
        )

        @telling(4)
        def act(id_: str, page: int, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
            data, user = data_of(event), user_of(request)
            if data.get("act") == "page":
                page = max(1, int(data.get("page", 1)))
            elif data.get("act") == "drop":
                self.app.datasets.drop(id_, str(data.get("id")), user)
            return page, *self._view(id_, page, user), Markup("")

        self.captions.click(
            act, [self.chosen, self.page], [self.page, *shown], trigger_mode="multiple", **QUIET
        )

        @telling(2)
        def write(id_: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
            data, user = data_of(event), user_of(request)
            self.app.datasets.caption(id_, str(data.get("id")), str(data.get("value", "")), user)
            return self._report(id_, user), Markup("")

        self.captions.input(write, self.chosen, [self.report, self.said], trigger_mode="multiple", **QUIET)

        @telling(3)
        def upload(files: list[str] | None, name: str, request: gr.Request) -> tuple[Any, ...]:
            if not files:
                return gr.skip(), gr.skip(), Markup("")
            user = user_of(request)
            made = self.app.datasets.create(name or Path(files[0]).stem, user)
            for path in files:
                sent = self.app.uploads.take(Path(path), "picture", user)
                self.app.datasets.add(made.id, sent.id, user)
            rows = self.app.datasets.list(user)
            named = [(f"{row.name} ({row.pictures})", row.id) for row in rows]
            return (
                None,
                gr.update(choices=named, value=made.id),
                notice(f"{len(files)} pictures taken in.", "good"),
            )

        self.files.upload(upload, [self.files, self.name], [self.files, self.chosen, self.said])

    def _view(self, id_: str | None, page: int, user: str) -> tuple[Markup, Markup]:
        if not id_:
            return NOT_CHOSEN, Markup("")
        own = next((row.own for row in self.app.datasets.list(user) if row.id == id_), False)
        pictures = self.app.datasets.pictures(id_, user)
        return captions(id_, pictures, page, own), self._report(id_, user)

    def _report(self, id_: str, user: str) -> Markup:
        return report(self.app.datasets.check(id_, user, self.resolution))


def report(found: dict[str, Any]) -> Markup:
    """What the data hold and what is worth mending."""
    words = ", ".join(f"{word} ({count})" for word, count in found["words"][:6])
    pairs = [
        ("Pictures", found["pictures"]),
        ("With a caption", found["captioned"]),
        ("Frequent words", words),
    ]
    advice = found["advice"]
    if not advice:
        return join([facts(pairs), notice("Nothing to mend.", "good")])
    box = node(
        "div", node("strong", "Worth a look"), bullets(advice), cls="lc-notice lc-warning", role="status"
    )
    return join([facts(pairs), box])


def captions(data: str, pictures: list[Captioned], page: int, own: bool) -> Markup:
    """A page of pictures, each with its caption to be edited."""
    if not pictures:
        return empty("No pictures in it", "Upload some.")
    pages = -(-len(pictures) // PAGE)
    page = min(page, pages)
    rows = [
        node(
            "li",
            node("img", src=data_picture(data, one.id), alt="", loading="lazy", width=56, height=56),
            node(
                "input", type="text", value=one.caption, data_edit="caption", data_id=one.id,
                aria_label=f"Caption of {one.name}", placeholder="what the picture shows",
            ),
            _removing(one) if own else None,
        )
        for one in pictures[(page - 1) * PAGE : page * PAGE]
    ]  # fmt: skip
    return join([node("ul", *rows, cls="lc-captions"), pager(page, pages, len(pictures), "picture")])


def _removing(one: Captioned) -> Markup:
    return button("Remove", "drop", cls="lc-small", data_id=one.id, aria_label=f"Remove {one.name}")
