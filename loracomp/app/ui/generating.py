"""Compose, the right: an image on its way, and when it is there."""

from __future__ import annotations

from typing import Any

import gradio as gr

from loracomp.app.job import Job
from loracomp.app.ui import progress
from loracomp.app.ui.compose import Compose, stage_of
from loracomp.app.ui.form import Values, request_of
from loracomp.app.ui.markup import Markup, button, node
from loracomp.app.ui.session import asked, telling, user_of
from loracomp.app.ui.sources import image

QUIET: dict[str, Any] = {"show_progress": "hidden"}


def connect(app: Any, made: Compose, blocks: Any) -> None:
    """Connects Generate, Cancel and the clock between them; a job that runs is found again after a reload."""
    form = made.form

    @telling(6)
    def generate(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        whole = asked(request_of(Values(*values)))
        user = user_of(request)
        id_ = app.generate(whole, user)
        return (
            id_,
            progress.view(app.jobs.get(id_, user)),
            gr.Timer(active=True),
            gr.update(visible=True),
            whole.seed,
            Markup(""),
        )

    made.generate.click(
        generate,
        inputs=form.inputs(),
        outputs=[made.job, made.stage, made.timer, made.cancel, form.seed, made.said],
        **QUIET,
    )

    @telling(4)
    def look(id_: str, request: gr.Request) -> tuple[Any, ...]:
        job = app.jobs.get(id_, user_of(request))
        return shown(job), gr.Timer(active=job.live), gr.update(visible=job.live), Markup("")

    def again(request: gr.Request) -> tuple[Any, Any]:
        live = [job for job in app.jobs.list(user_of(request), kind="generate") if job.live]
        return (live[0].id, gr.Timer(active=True)) if live else (gr.skip(), gr.skip())

    blocks.load(again, outputs=[made.job, made.timer], **QUIET)
    made.timer.tick(look, inputs=made.job, outputs=[made.stage, made.timer, made.cancel, made.said], **QUIET)

    @telling(1)
    def cancel(id_: str, request: gr.Request) -> Markup:
        app.jobs.cancel(id_, user_of(request))
        return Markup("")

    made.cancel.click(cancel, inputs=made.job, outputs=made.said, **QUIET)


def shown(job: Job) -> Markup:
    """The images of a job that is done, else where it stands."""
    if job.state != "done":
        return progress.view(job)
    return stage_of([figure(str(id_)) for id_ in job.result.get("images", [])])


def figure(id_: str, words: str = "") -> Markup:
    """An image of the history with what can be done with it."""
    source = image(id_)
    link = node("a", "Download", href=source, download=f"{id_}.png")
    compare = button("Compare with no adapter", "compare", cls="lc-small", data_id=id_)
    caption = node("figcaption", node("div", link, compare, cls="lc-row"), words or None)
    return node(
        "figure", node("img", src=source, alt="The finished picture"), caption, cls="lc-figure", data_id=id_
    )
