"""The tab Library: what is there, what the doctor says of it, and everything that changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from loracomp.app.adapter_rows import AdapterRow
from loracomp.app.editing import ConvertRequest, EditRequest, ImportRequest, PictureRequest
from loracomp.app.ui import progress, shelf
from loracomp.app.ui.doctor import duplicates, examined
from loracomp.app.ui.finding import turned
from loracomp.app.ui.markup import Markup, empty, facts, node, notice
from loracomp.app.ui.panel import data_of, panel, plain
from loracomp.app.ui.session import checked_request, telling, user_of
from loracomp.app.ui.sources import thumbnail

QUIET: dict[str, Any] = {"show_progress": "hidden"}
NOTHING = empty("No adapter chosen", "Press one to see what is in it and to edit it.")
DIALECTS = ["auto", "kohya", "diffusers"]
AS_IT_IS = "as it is"


class Library:
    """The tab.

    Args:
        app: What is running.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.page, self.chosen, self.job = gr.State(1), gr.State(""), gr.State("")
        self.timer = gr.Timer(1.0, active=False)
        with gr.Row(elem_classes="lc-columns"):
            with gr.Column(scale=5, min_width=300):
                plain("<h2>Adapters</h2>", id="library-title")
                self.query = gr.Textbox(
                    label="Search",
                    placeholder="name, trigger word or tag",
                    elem_id="library-find",
                    max_lines=1,
                )
                self.gallery = panel(id="library-gallery")
                self._whole()
            with gr.Column(scale=5, min_width=300):
                plain("<h2>Adapter</h2>", id="library-adapter-title")
                self.said = plain(id="library-notice")
                self.detail = panel(NOTHING, id="library-detail")
                with gr.Column(visible=False) as self.box:
                    self._forms()
        self._connect()
        self._connect_whole()

    def _whole(self) -> None:
        plain("<h2>Import</h2>", id="import-title")
        self.file = gr.File(
            label="A LoRA file (.safetensors)", file_types=[".safetensors"], height=150, elem_id="import"
        )
        self.partial = gr.Checkbox(False, label="Take it even where not all of it loads", elem_id="partial")
        self.import_said = plain(id="import-notice")
        self.import_report = plain(id="import-report")
        plain("<h2>The whole library</h2>", id="whole-title")
        with gr.Row(elem_classes="lc-actions"):
            self.index = gr.Button("Build the index", elem_id="index", min_width=130)
            self.examine = gr.Button("Find duplicates and faults", elem_id="duplicates", min_width=130)
        self.whole = panel(id="whole")

    def _forms(self) -> None:
        with gr.Accordion("Edit", open=True, elem_id="edit"):
            self.name = gr.Textbox(label="Name", elem_id="edit-name", max_lines=1)
            self.triggers = gr.Textbox(
                label="Trigger words, separated by commas", elem_id="edit-triggers", max_lines=1
            )
            self.tags = gr.Textbox(label="Tags, separated by commas", elem_id="edit-tags", max_lines=1)
            self.licence = gr.Textbox(label="License", elem_id="edit-licence", max_lines=1)
            with gr.Row():
                self.weight = gr.Number(
                    1.0, label="Weight to begin with", step=0.05, elem_id="edit-weight", min_width=90
                )
                self.low = gr.Number(-1.0, label="Least weight", step=0.05, elem_id="edit-low", min_width=90)
                self.high = gr.Number(
                    2.0, label="Largest weight", step=0.05, elem_id="edit-high", min_width=90
                )
            self.picture = gr.File(
                label="New thumbnail", file_types=["image"], height=130, elem_id="edit-picture"
            )
            self.save = gr.Button("Save", variant="primary", elem_id="edit-save")
        with gr.Accordion("Convert to another form", open=False, elem_id="convert"):
            self.target = gr.Textbox(label="Name of the new file", elem_id="convert-name", max_lines=1)
            with gr.Row():
                self.dialect = gr.Dropdown(DIALECTS, value="auto", label="Dialect", min_width=90)
                self.rank = gr.Number(0, label="Rank at most, 0: all", precision=0, minimum=0, min_width=90)
                self.dtype = gr.Dropdown(
                    [AS_IT_IS, "fp16", "bf16", "fp32"], value=AS_IT_IS, label="Numbers", min_width=90
                )
            self.convert = gr.Button("Convert", elem_id="convert-start")

    def shown(self) -> dict[str, Any]:
        """The event that draws the gallery."""

        def load(query: str, page: int, chosen: str) -> Markup:
            found = self.app.library.page(query=query, page=page, size=shelf.PAGE)
            reading = not self.app.library.status()["adapters"]
            return shelf.shelf(found, [chosen], bool(query), reading, act="show")

        return {"fn": load, "inputs": [self.query, self.page, self.chosen], "outputs": self.gallery, **QUIET}

    def _connect(self) -> None:
        self.query.input(lambda: 1, outputs=self.page, trigger_mode="always_last", **QUIET).then(
            **self.shown()
        )
        fields = [
            self.name,
            self.triggers,
            self.tags,
            self.licence,
            self.weight,
            self.low,
            self.high,
            self.target,
        ]
        outputs = [self.page, self.chosen, self.detail, self.box, *fields, self.said]

        @telling(len(outputs))
        def press(page: int, chosen: str, event: gr.EventData) -> tuple[Any, ...]:
            data = data_of(event)
            if data.get("act") == "page":
                return turned(event), chosen, *(gr.skip() for _ in range(2 + len(fields))), Markup("")
            row = self.app.library.get(str(data.get("id")))
            return (
                page,
                row.id,
                details(row, self.app.editing.report(row.id)),
                gr.update(visible=True),
                *_filled(row),
                Markup(""),
            )

        self.gallery.click(press, [self.page, self.chosen], outputs, trigger_mode="multiple", **QUIET).then(
            **self.shown()
        )

        @telling(2)
        def save(request: gr.Request, id_: str, picture: str | None, *given: Any) -> tuple[Any, ...]:
            row, user = self.app.library.get(id_), user_of(request)
            row = self.app.editing.edit(id_, checked_request(EditRequest, _changes(row, *given)))
            if picture:
                sent = self.app.uploads.take(Path(picture), "picture", user)
                row = self.app.editing.picture(id_, PictureRequest(upload=sent.id), user)
            return details(row, self.app.editing.report(id_)), notice("Saved.", "good")

        saved = [self.chosen, self.picture, *fields[:-1]]
        self.save.click(save, saved, [self.detail, self.said]).then(**self.shown())

        @telling(3)
        def convert(
            id_: str, name: str, dialect: str, rank: float, dtype: str, request: gr.Request
        ) -> tuple[Any, ...]:
            values = {
                "name": name.strip(), "dialect": dialect, "rank": int(rank) or None,
                "dtype": "" if dtype == AS_IT_IS else dtype,
            }  # fmt: skip
            asked = checked_request(ConvertRequest, values, {"name": "give the new file a name"})
            return self.app.convert(id_, asked, user_of(request)), gr.Timer(active=True), Markup("")

        self.convert.click(
            convert,
            [self.chosen, self.target, self.dialect, self.rank, self.dtype],
            [self.job, self.timer, self.said],
        )

        @telling(3)
        def remove(event: gr.EventData) -> tuple[Any, ...]:
            if data_of(event).get("act") != "remove":
                return gr.skip(), gr.skip(), Markup("")
            self.app.editing.remove(str(data_of(event).get("id")))
            return NOTHING, gr.update(visible=False), notice("Taken out of the library.", "good")

        self.detail.click(remove, outputs=[self.detail, self.box, self.said], **QUIET).then(**self.shown())

    def _connect_whole(self) -> None:
        @telling(2)
        def take(path: str | None, partial: bool, request: gr.Request) -> tuple[Any, ...]:
            if not path:
                return Markup(""), Markup("")
            user = user_of(request)
            sent = self.app.uploads.take(Path(path), "adapter", user)
            found = self.app.editing.take(ImportRequest(upload=sent.id, allow_partial=partial), user)
            name = self.app.library.get(found["id"]).name
            return examined(found["report"]), notice(f"{name} is in the library.", "good")

        self.file.upload(take, [self.file, self.partial], [self.import_report, self.import_said]).then(
            **self.shown()
        )
        for pressed, deed in ((self.index, self.app.index), (self.examine, self.app.examine)):
            pressed.click(self._begun(deed), outputs=[self.job, self.timer, self.said], **QUIET)

        @telling(3)
        def look(id_: str, request: gr.Request) -> tuple[Any, ...]:
            job = self.app.jobs.get(id_, user_of(request))
            if job.state != "done":
                return progress.view(job), gr.Timer(active=job.live), Markup("")
            return done(self.app, job), gr.Timer(active=False), Markup("")

        self.timer.tick(look, self.job, [self.whole, self.timer, self.said], **QUIET)
        self.job.change(lambda: None).then(**self.shown())

    def _begun(self, deed: Any) -> Any:
        @telling(3)
        def begin(request: gr.Request) -> tuple[Any, ...]:
            return deed(user_of(request)), gr.Timer(active=True), Markup("")

        return begin


def done(app: Any, job: Any) -> Markup:
    """What came of a job that is over."""
    if job.kind == "doctor":
        return duplicates(app, job.result)
    if job.kind == "convert":
        error = job.result.get("error")
        lost = f"; relative error {error:.2g}" if isinstance(error, float) and error else ""
        return notice(
            f"Converted to {job.result.get('dialect', '')}{lost}; the new file is in the library.", "good"
        )
    if job.kind == "index":
        return notice("The index is built; search by meaning, by picture and by likeness work now.", "good")
    return notice("Done.", "good")


def details(row: AdapterRow, report: dict[str, Any]) -> Markup:
    """What an adapter is, and what the doctor says of it."""
    from loracomp.app.ui.markup import button

    picture = shelf.face(row.name, thumbnail(row))
    pairs = [
        ("Model", row.base), ("Kind", row.kind), ("Trigger words", ", ".join(row.triggers)),
        ("Tags", ", ".join(row.tags)), ("License", row.licence or "not said"), ("Rank", row.rank or ""),
        ("Size", f"{row.bytes / 1e6:.1f} MB"), ("Weight", f"{row.weight:g} ({row.low:g} to {row.high:g})"),
    ]  # fmt: skip
    own = button("Take out of the library", "remove", data_id=row.id) if row.editable else None
    file = node("a", "Download", href=f"/api/v1/adapters/{row.id}/file", download=True, cls="lc-button")
    row_of = node("div", file, own, cls="lc-row")
    head = node(
        "div",
        node("div", picture, cls="lc-face"),
        node("div", node("strong", row.name), facts(pairs)),
        cls="lc-head-card",
    )
    shipped = (
        None
        if row.editable
        else notice("It ships with loracomp; its weights can be set, its header stays as it is.")
    )
    return node("div", head, row_of, examined(report), shipped, cls="lc-stage")


def _filled(row: AdapterRow) -> tuple[Any, ...]:
    words = ", ".join(row.triggers), ", ".join(row.tags)
    return row.name, *words, row.licence, row.weight, row.low, row.high, f"{row.name}-converted"


def _changes(
    row: AdapterRow, name: str, triggers: str, tags: str, licence: str, weight: float, low: float, high: float
) -> dict[str, Any]:
    """What differs from the row, and the strengths."""
    now = {"name": name, "triggers": _words(triggers), "tags": _words(tags), "licence": licence}
    changed = {field: value for field, value in now.items() if value != getattr(row, field)}
    return {**changed, "weight": weight, "low": low, "high": high}


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
