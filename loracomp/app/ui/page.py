"""Head and tabs, and what runs between them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from loracomp.app.ui import compose, finding, generating, keeping, mixing, queue
from loracomp.app.ui.compare import Compare
from loracomp.app.ui.finding import ANY
from loracomp.app.ui.form import methods, schedulers
from loracomp.app.ui.history import History
from loracomp.app.ui.library import Library
from loracomp.app.ui.markup import Markup, node
from loracomp.app.ui.panel import plain
from loracomp.app.ui.train import Train
from loracomp.app.ui.watermark import Watermark
from loracomp.bases import BASES

QUIET: dict[str, Any] = {"show_progress": "hidden"}
_STILL = "Loading the model{}; you can look around and queue pictures already"


def page(app: Any) -> Any:
    """The whole page."""
    with gr.Blocks(title="loracomp", analytics_enabled=False, fill_width=True) as blocks:
        state = plain(head(app.engine_state()), id="head")
        clock = gr.Timer(1.5)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Compose", id="compose"):
                made = compose.tab()
            with gr.Tab("Compare", id="compare"):
                Compare(app, made, tabs)
            with gr.Tab("History", id="history") as history_tab:
                history = History(app, made, tabs)
            with gr.Tab("Train", id="train") as train_tab:
                train = Train(app, side(app))
            with gr.Tab("Watermark", id="watermark") as mark_tab:
                watermark = Watermark(app, tabs)
            with gr.Tab("Library", id="library") as library_tab:
                library = Library(app)
            with gr.Tab("Jobs", id="jobs") as jobs_tab:
                jobs = queue.Queue(app)
        drawn = finding.connect(app, made)
        mixing.connect(app, made, drawn)
        generating.connect(app, made, blocks)
        keeping.connect(app, made, blocks)
        ready = _clock(app, clock, state, made, drawn)
        ready.change(**train.shown())
        ready.change(**watermark.checked())
        blocks.load(**drawn)
        history_tab.select(**history.shown())
        train_tab.select(**train.shown())
        mark_tab.select(**watermark.shown())
        mark_tab.select(**watermark.checked())
        library_tab.select(**library.shown())
        jobs_tab.select(**jobs.shown())
        jobs.run_while_chosen(tabs)
        _quiet(blocks)
    return blocks.queue(default_concurrency_limit=16)


def _quiet(blocks: Any) -> None:
    """Leaves the page's own events out of Gradio's list of calls: it would be half of the page.

    Programs have ``/api/v1``.
    """
    for event in blocks.fns.values():
        event.api_visibility = "private"


def side(app: Any) -> int:
    """Side of the base's images in pixels, as far as its name tells."""
    row = BASES.get(str(app.settings.base))
    return row.resolution if row else 1


def head(state: dict[str, Any]) -> Markup:
    """Name, state of the model, light or dark."""
    base = f" {state['base']}" if state.get("base") else ""
    words = {
        "loading": _STILL.format(base),
        "ready": f"Model{base} is ready",
        "error": f"The model cannot be used: {state.get('error', '')}",
    }
    dot = node("span", cls=f"lc-dot {state['state']}", aria_hidden="true")
    said = node("span", words[state["state"]], role="status", id="engine-state", data_state=state["state"])
    toggle = node("button", "Light or dark", type="button", cls="lc-small", data_theme_toggle=True)
    return node(
        "header", node("h1", "loracomp"), node("div", dot, said, toggle, cls="lc-state"), cls="lc-head"
    )


def _clock(app: Any, clock: Any, state: Any, made: compose.Compose, drawn: dict[str, Any]) -> Any:
    """Asks until the model and the library are there, then fills the lists that come with them.

    Gives a state that changes when the model is there.
    """
    form, seen, ready = made.form, gr.State(-1), gr.State(False)

    def look(method: str) -> tuple[Any, ...]:
        found = app.engine_state()
        library = found["library"]
        if found["state"] == "loading":
            return head(found), gr.skip(), library["adapters"], *(gr.skip() for _ in range(4))
        settled = library["adapters"] > 0 and not library["scanning"]
        lists = methods(app), schedulers(app)
        return head(found), gr.Timer(active=not settled), library["adapters"], *lists, told(method), True

    def told(method: str) -> Any:
        if app.engine_state()["state"] == "loading":
            return gr.skip()
        return node("p", next((one["summary"] for one in app.methods() if one["name"] == method), ""))

    def facets() -> tuple[Any, Any]:
        found = app.library.facets()
        return gr.update(choices=[ANY, *found["tag"]]), gr.update(choices=[ANY, *found["licence"]])

    outputs = [state, clock, seen, form.method, form.scheduler, made.told, ready]
    clock.tick(look, form.method, outputs, **QUIET)
    form.method.change(told, form.method, made.told, **QUIET)
    seen.change(**drawn)
    seen.change(facets, outputs=[made.finder.tag, made.finder.licence], **QUIET)
    return ready
