"""The tab Compare: a grid of what changes, and any picture against the one without adapters."""

from __future__ import annotations

from typing import Any

import gradio as gr

from loracomp.app.job import Job
from loracomp.app.requests import GenerateRequest, GridRequest
from loracomp.app.ui import progress
from loracomp.app.ui.axes import FIELDS, HINTS, NOTHING, STARTS, axis
from loracomp.app.ui.compose import Compose
from loracomp.app.ui.form import Values, request_of
from loracomp.app.ui.markup import Markup, empty, join, node
from loracomp.app.ui.panel import data_of, panel, plain
from loracomp.app.ui.picks import checked
from loracomp.app.ui.session import asked, telling, user_of
from loracomp.app.ui.sources import image, small

QUIET: dict[str, Any] = {"show_progress": "hidden"}
EMPTY = empty("No comparison yet", "Say what changes and draw the grid; Compose's settings are the rest.")
NO_PAIR = empty(
    "Before and after", "Press a picture of the grid, or Compare with no adapter below one in Compose."
)
FIRST = "the first adapter"
_ROWS = ("Columns", "Rows", "Sheets")


class Compare:
    """The tab.

    Args:
        app: What is running.
        made: Compose, whose settings are compared.
        tabs: To come here from Compose.
    """

    def __init__(self, app: Any, made: Compose, tabs: Any) -> None:
        self.app, self.made, self.tabs = app, made, tabs
        self.job, self.pair, self.plain_id = gr.State(""), gr.State(""), gr.State("")
        self.timer = gr.Timer(0.8, active=False)
        with gr.Row(elem_classes="lc-columns"):
            with gr.Column(scale=4, min_width=300):
                plain("<h2>What changes</h2>", id="axes-title")
                self.axes = [self._axis(name, number) for number, name in enumerate(_ROWS)]
                with gr.Row(elem_classes="lc-actions"):
                    self.draw = gr.Button(
                        "Draw the grid", variant="primary", elem_id="grid-draw", min_width=130
                    )
                    self.cancel = gr.Button("Cancel", visible=False, elem_id="grid-cancel", min_width=90)
                self.said = plain(id="grid-notice")
                self.summary = plain(id="grid-summary", classes="lc-quiet")
            with gr.Column(scale=8, min_width=320):
                plain("<h2>Grid</h2>", id="grid-title")
                self.grid = panel(EMPTY, id="grid")
                plain("<h2>Before and after</h2>", id="pair-title")
                self.no_pair = plain(NO_PAIR, id="no-pair")
                self.slider = gr.ImageSlider(
                    label="Without adapters, and with", type="pil", visible=False, elem_id="pair",
                    max_height=560, buttons=[],
                )  # fmt: skip
        self._connect()

    def _axis(self, name: str, number: int) -> tuple[Any, Any, Any]:
        with gr.Row(elem_classes="lc-axis"):
            first = "weight" if number == 0 else NOTHING
            field = gr.Dropdown(
                [NOTHING, *FIELDS] if number else list(FIELDS), value=first, label=name, min_width=150,
                elem_id=f"axis-{number}",
            )  # fmt: skip
            values = gr.Textbox(
                STARTS.get(first, ""), label=f"Values, {name.lower()}", min_width=190, scale=2, max_lines=1,
                placeholder=HINTS.get(first, "separated by commas"), elem_id=f"values-{number}",
            )  # fmt: skip
        about = gr.Dropdown(
            [FIRST],
            value=FIRST,
            label=f"{name}: which adapter",
            elem_id=f"about-{number}",
            visible=number == 0,
        )
        return field, values, about

    def _connect(self) -> None:
        for field, values, about in self.axes:
            field.input(self._chosen, [field, self.made.form.picks], [values, about], **QUIET)
        form = self.made.form

        def choices(picks: Any) -> tuple[Any, ...]:
            names = [FIRST, *((entry["name"], entry["id"]) for entry in checked(picks))]
            return (*(gr.update(choices=names) for _ in self.axes), _summary(checked(picks)))

        form.picks.change(choices, form.picks, [*(about for *_, about in self.axes), self.summary], **QUIET)
        parts = [part for row in self.axes for part in row]
        began = [self.job, self.grid, self.timer, self.cancel, self.said]

        @telling(5)
        def draw(request: gr.Request, *given: Any) -> tuple[Any, ...]:
            rows, values = given[: len(parts)], Values(*given[len(parts) :])
            found = [
                axis(
                    self.app.library,
                    name,
                    rows[3 * n],
                    rows[3 * n + 1],
                    "" if rows[3 * n + 2] == FIRST else rows[3 * n + 2],
                )
                for n, name in enumerate(_ROWS)
            ]
            whole = asked(request_of(values)).model_copy(update={"batch": 1})
            x, *others = [one for one in found if one is not None]
            y, z = (*others, None, None)[:2]
            id_ = self.app.compare(
                GridRequest(request=whole, x=x, y=y, z=z, plain=bool(whole.adapters)), user_of(request)
            )
            return (
                id_,
                progress.view(self.app.jobs.get(id_, user_of(request))),
                gr.Timer(active=True),
                gr.update(visible=True),
                Markup(""),
            )

        self.draw.click(draw, [*parts, *form.inputs()], began, **QUIET)

        @telling(1)
        def cancel(id_: str, request: gr.Request) -> Markup:
            self.app.jobs.cancel(id_, user_of(request))
            return Markup("")

        self.cancel.click(cancel, self.job, self.said, **QUIET)
        shown = [self.grid, self.timer, self.cancel, self.plain_id, self.slider, self.no_pair, self.said]
        self.timer.tick(self._look, [self.job, self.pair], shown, **QUIET)
        self.grid.click(
            self._press,
            [self.plain_id],
            [self.slider, self.no_pair, self.said],
            trigger_mode="multiple",
            **QUIET,
        )
        self.made.stage.click(
            self._without,
            outputs=[
                self.job, self.pair, self.timer, self.tabs, self.no_pair, self.slider, self.made.said,
            ],
            trigger_mode="multiple",
            **QUIET,
        )  # fmt: skip

    def _chosen(self, field: str, picks: Any) -> tuple[Any, Any]:
        hint = HINTS.get(field, "separated by commas")
        start = STARTS.get(field, "")
        if field == "adapter":
            start = ", ".join(entry["name"] for entry in checked(picks))
        return gr.update(value=start, placeholder=hint), gr.update(visible=field in ("weight", "adapter"))

    def _look(self, id_: str, pair: str, request: gr.Request) -> tuple[Any, ...]:
        try:
            job = self.app.jobs.get(id_, user_of(request))
            live = (gr.Timer(active=job.live), gr.update(visible=job.live))
            if job.kind == "generate":
                return self._paired(job, pair, live, user_of(request))
            shown = grid_of(job) if job.state == "done" else progress.view(job)
            return shown, *live, job.result.get("plain") or "", gr.skip(), gr.skip(), Markup("")
        except Exception as error:
            from loracomp.app.ui.session import told

            return gr.skip(), gr.Timer(active=False), gr.skip(), gr.skip(), gr.skip(), gr.skip(), told(error)

    def _paired(self, job: Job, pair: str, live: tuple[Any, Any], user: str) -> tuple[Any, ...]:
        if job.state != "done":
            return gr.skip(), *live, gr.skip(), gr.skip(), progress.view(job), Markup("")
        without = str(job.result["images"][0])
        return gr.skip(), *live, without, self._slider(without, pair, user), Markup(""), Markup("")

    def _slider(self, without: str, with_: str, user: str) -> Any:
        from PIL import Image

        paths = [self.app.history.get(id_, user).path for id_ in (without, with_)]
        images = [Image.open(path).convert("RGB") for path in paths]
        return gr.update(value=tuple(images), visible=True)

    def _press(self, without: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        @telling(3)
        def open_pair() -> tuple[Any, ...]:
            if not without:
                return gr.skip(), gr.skip(), Markup("")
            return (
                self._slider(without, str(data_of(event).get("id")), user_of(request)),
                Markup(""),
                Markup(""),
            )

        return tuple(open_pair())

    def _without(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Draws a picture of Compose again without its adapters."""

        @telling(7)
        def begin() -> tuple[Any, ...]:
            data, user = data_of(event), user_of(request)
            if data.get("act") != "compare":
                return tuple(gr.skip() for _ in range(7))
            picture = self.app.history.get(str(data.get("id")), user)
            id_ = self.app.generate(bare(picture.request, picture.index), user)
            waiting = progress.view(self.app.jobs.get(id_, user))
            return (
                id_,
                picture.id,
                gr.Timer(active=True),
                gr.Tabs(selected="compare"),
                waiting,
                gr.update(visible=False),
                Markup(""),
            )

        return tuple(begin())


def bare(request: GenerateRequest, index: int) -> GenerateRequest:
    """The request of one image without adapters, from the same noise."""
    step = 0 if len(request.programs) > 1 else index
    return request.model_copy(
        update={
            "adapters": (), "programs": (), "options": {}, "method": "merge", "batch": 1,
            "seed": (request.seed or 0) + step,
        }
    )  # fmt: skip


def grid_of(job: Job) -> Markup:
    """The finished grid: a table per sheet, every cell a picture with its own setting at its edges."""
    cells = job.result.get("cells", [])
    axes = len(cells[0]["labels"]) if cells else 0
    sheets = sorted({cell["z"] for cell in cells})
    return node(
        "div",
        join(_sheet([cell for cell in cells if cell["z"] == z], axes) for z in sheets),
        data_state="done",
    )


def _sheet(cells: list[dict[str, Any]], axes: int) -> Markup:
    columns = {cell["x"]: cell["labels"][0] for cell in cells}
    rows = {cell["y"]: cell["labels"][1] if axes > 1 else "" for cell in cells}
    at = {(cell["x"], cell["y"]): cell for cell in cells}
    corner = node("td") if axes > 1 else None
    head = node("tr", corner, *(node("th", columns[x], scope="col") for x in sorted(columns)))
    body = [
        node(
            "tr", node("th", rows[y], scope="row") if axes > 1 else None,
            *(node("td", _cell(at[x, y])) for x in sorted(columns) if (x, y) in at),
        )
        for y in sorted(rows)
    ]  # fmt: skip
    title = node("h3", cells[0]["labels"][2]) if axes > 2 else None
    box = node(
        "div",
        node("table", head, *body),
        cls="lc-grid",
        tabindex="0",
        role="region",
        aria_label="Grid of pictures",
    )
    return join([title, box] if title else [box])


def _cell(cell: dict[str, Any]) -> Markup:
    words = ", ".join(cell["labels"])
    picture = node("img", src=small(cell["id"]), alt="", loading="lazy", data_full=image(cell["id"]))
    return node(
        "button",
        picture,
        type="button",
        cls="lc-cell",
        data_act="pair",
        data_id=cell["id"],
        aria_label=f"{words}: before and after",
    )


def _summary(picks: list[dict[str, Any]]) -> Markup:
    """What stays the same: the adapters of Compose."""
    if not picks:
        return node("p", "Compose has no adapter picked.")
    names = ", ".join(f"{entry['name']} {entry['weight']:g}" for entry in picks)
    return node("p", f"From Compose: {names}, its prompt and settings.")
