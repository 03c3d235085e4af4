"""The tab of jobs: one queue for images, training and indexing."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from loracomp.app.job import Job
from loracomp.app.ui.markup import Markup, empty, node, table
from loracomp.app.ui.panel import data_of, panel, plain
from loracomp.app.ui.progress import WORDS, actions, bar, sentence
from loracomp.app.ui.session import telling, user_of

KINDS = {
    "generate": "image",
    "grid": "comparison",
    "thumbnails": "thumbnails",
    "index": "index",
    "scan": "library",
    "train": "training",
    "mark": "watermark",
    "convert": "conversion",
    "doctor": "examination",
}
SECONDS = 1.5


class Queue:
    """The tab; it looks for news while it is the chosen one.

    Args:
        app: What is running.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        words = "Pictures, comparisons, training and indexing share one queue; users take turns."
        plain(node("p", words, cls="lc-lead"), id="jobs-lead")
        self.said = plain(id="jobs-notice")
        self.rows = panel(id="jobs-list")
        self.timer = gr.Timer(SECONDS, active=False)

        @telling(2)
        def act(event: gr.EventData, request: gr.Request) -> tuple[Markup, Markup]:
            user, data = user_of(request), data_of(event)
            deeds = {"cancel": app.jobs.cancel, "stop": app.jobs.stop, "resume": app.jobs.resume}
            if deed := deeds.get(str(data.get("act"))):
                deed(str(data.get("id")), user)
            return listing(app.jobs.list(user)), Markup("")

        self.rows.click(act, outputs=[self.rows, self.said], show_progress="hidden", trigger_mode="multiple")
        self.timer.tick(**self.shown())

    def load(self, request: gr.Request) -> Markup:
        """The list as it is."""
        return listing(self.app.jobs.list(user_of(request)))

    def shown(self) -> dict[str, Any]:
        """The event that draws the tab."""
        return {"fn": self.load, "outputs": self.rows, "show_progress": "hidden"}

    def run_while_chosen(self, tabs: Any) -> None:
        """Lets the clock run while the tab is open."""

        def turn(event: gr.SelectData) -> Any:
            return gr.Timer(active=event.value == "Jobs")

        tabs.select(turn, outputs=self.timer, show_progress="hidden")


def listing(jobs: list[Job]) -> Markup:
    """The jobs as a table."""
    if not jobs:
        return empty("No jobs yet", "What you generate, compare or train shows up here, and can be canceled.")
    head = ("Job", "What", "State", "When", "")
    rows = [
        (KINDS.get(job.kind, job.kind), job.title, _state(job), _age(job.created), actions(job))
        for job in jobs
    ]
    return table(head, rows, "Your jobs, newest first")


def _state(job: Job) -> Markup:
    words = node(
        "span", f"{WORDS[job.state]}: {sentence(job)}" if job.live or job.error else WORDS[job.state]
    )
    return node("div", words, bar(job.step, job.steps, job.title) if job.state == "running" else None)


def _age(then: float) -> str:
    seconds = max(0, time.time() - then)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return "just now"
