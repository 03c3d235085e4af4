"""The tab Train: from pictures to an adapter in the library, watched on the way."""

from __future__ import annotations

from typing import Any

import gradio as gr

from loracomp.app.job import Job
from loracomp.app.training_jobs import TrainRequest
from loracomp.app.ui import chart, progress
from loracomp.app.ui.data import Data
from loracomp.app.ui.markup import Markup, empty, join, node, notice
from loracomp.app.ui.panel import panel, plain
from loracomp.app.ui.session import checked_request, telling, user_of
from loracomp.app.ui.sources import sample

QUIET: dict[str, Any] = {"show_progress": "hidden"}
EMPTY = empty(
    "No run yet", "Choose pictures and a name, press Start training; it goes on when you close this page."
)
KINDS = {
    "style": "style: how everything looks",
    "subject": "subject: one thing or person",
    "accelerator": "accelerator: fewer steps",
}


class Train:
    """The tab.

    Args:
        app: What is running.
        resolution: Side of the base's images in pixels.
    """

    def __init__(self, app: Any, resolution: int) -> None:
        self.app = app
        self.timer = gr.Timer(1.0, active=False)
        with gr.Row(elem_classes="lc-columns"):
            with gr.Column(scale=5, min_width=300):
                self.data = Data(app, resolution)
            with gr.Column(scale=4, min_width=300):
                self._form()
            with gr.Column(scale=4, min_width=300):
                plain("<h2>Run</h2>", id="run-title")
                self.run = gr.Dropdown([], label="Which run", elem_id="run", visible=False, filterable=False)
                self.stage = panel(EMPTY, id="run-stage")
                with gr.Row(elem_classes="lc-actions"):
                    self.stop = gr.Button(
                        "Stop, keep its state", visible=False, elem_id="train-stop", min_width=130
                    )
                    self.resume = gr.Button("Go on", visible=False, elem_id="train-resume", min_width=90)
                    self.cancel = gr.Button("Cancel", visible=False, elem_id="train-cancel", min_width=90)
                self.run_said = plain(id="run-notice")
        self._connect()

    def _form(self) -> None:
        plain("<h2>Adapter</h2>", id="adapter-title")
        self.name = gr.Textbox(label="Name", placeholder="my-style", elem_id="train-name", max_lines=1)
        self.kind = gr.Radio(
            [(words, kind) for kind, words in KINDS.items()], value="style", label="Kind", elem_id="kind"
        )
        self.trigger = gr.Textbox(
            label="Trigger words", placeholder="my style", elem_id="train-trigger", max_lines=1,
            info="They call it in a prompt; captions without them get them in front.",
        )  # fmt: skip
        with gr.Accordion("Settings", open=False, elem_id="train-settings"):
            plain(node("p", "0 takes the preset of the kind."), id="preset-told", classes="lc-quiet")
            with gr.Row():
                self.steps = gr.Number(
                    0, label="Steps", precision=0, minimum=0, elem_id="train-steps", min_width=90
                )
                self.rank = gr.Number(0, label="Rank", precision=0, minimum=0, min_width=90)
                self.batch = gr.Number(0, label="Batch", precision=0, minimum=0, min_width=90)
            with gr.Row():
                self.lr = gr.Number(0, label="Learning rate", minimum=0, step=0.0001, min_width=120)
                self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
            self.prompts = gr.Textbox(
                label="Sample prompts",
                placeholder="one a line; captions if left empty",
                lines=2,
                elem_id="train-prompts",
            )
            self.count = gr.Number(
                2, label="Samples per prompt", precision=0, minimum=0, maximum=16, elem_id="train-samples"
            )
        self.presets = plain(id="presets", classes="lc-quiet")
        self.start = gr.Button("Start training", variant="primary", elem_id="train-start")
        self.said = plain(id="train-notice")

    def shown(self) -> dict[str, Any]:
        """The event that draws the tab; the newest run comes back after a reload."""

        def load(run: str | None, kind: str, data: str | None, request: gr.Request) -> tuple[Any, ...]:
            runs = self.app.jobs.list(user_of(request), kind="train")
            # A slow answer must not undo what was begun meanwhile: nothing is emptied or stopped here.
            clock = gr.Timer(active=True) if any(job.live for job in runs) else gr.skip()
            return self.data.choices(data, request), _runs(runs, run), clock, self._preset(kind)

        outputs = [self.data.chosen, self.run, self.timer, self.presets]
        return {"fn": load, "inputs": [self.run, self.kind, self.data.chosen], "outputs": outputs, **QUIET}

    def _connect(self) -> None:
        asked = [
            self.data.chosen, self.name, self.kind, self.trigger, self.steps, self.rank, self.batch, self.lr,
            self.seed, self.prompts, self.count,
        ]  # fmt: skip

        @telling(3)
        def start(request: gr.Request, *values: Any) -> tuple[Any, ...]:
            user = user_of(request)
            self.app.training.submit(request_of(*values), user)
            runs = self.app.jobs.list(user, kind="train")
            return _runs(runs, None), gr.Timer(active=True), Markup("")

        self.start.click(start, asked, [self.run, self.timer, self.said])
        self.kind.change(self._preset, self.kind, self.presets, **QUIET)
        looked = [self.stage, self.timer, self.stop, self.resume, self.cancel, self.run_said]
        look = telling(6)(self._look)
        self.timer.tick(look, self.run, looked, **QUIET)
        self.run.change(look, self.run, looked, **QUIET)
        jobs = self.app.jobs
        for pressed, deed in ((self.stop, jobs.stop), (self.resume, jobs.resume), (self.cancel, jobs.cancel)):
            pressed.click(self._deed(deed), self.run, [self.timer, self.run_said], **QUIET)

    def _deed(self, deed: Any) -> Any:
        @telling(2)
        def press(id_: str, request: gr.Request) -> tuple[Any, Markup]:
            deed(id_, user_of(request))
            return gr.Timer(active=True), Markup("")

        return press

    def _look(self, id_: str | None, request: gr.Request) -> tuple[Any, ...]:
        if not id_:
            return EMPTY, gr.Timer(active=False), *(gr.update(visible=False) for _ in range(3)), Markup("")
        user = user_of(request)
        job = self.app.jobs.get(id_, user)
        return (
            self._stage(job, user),
            gr.Timer(active=job.live),
            gr.update(visible=job.state == "running"),
            gr.update(visible=job.state == "interrupted"),
            gr.update(visible=job.live),
            Markup(""),
        )

    def _stage(self, job: Job, user: str) -> Markup:
        curve = self.app.training.curve(job.id, user)
        steps = job.steps or (curve[-1][0] if curve else 0)
        names = self.app.training.samples(job.id, user)
        words = f"{job.request['name']} is in the library; pick it in Compose."
        head = notice(words, "good") if job.state == "done" else progress.view(job)
        drawn = chart.losses(curve, steps) if curve else None
        parts = [
            head,
            drawn,
            samples(job.id, names),
            *(notice(one) for one in self.app.training.notes(job.id, user)),
        ]
        return node("div", join(parts), cls="lc-stage", data_state=job.state)

    def _preset(self, kind: str) -> Any:
        """What the kind's preset does; nothing while torch is still on its way."""
        if self.app.engine_state()["state"] == "loading":
            return gr.skip()
        found = next((one for one in self.app.training.presets() if one["kind"] == kind), None)
        if found is None:
            return Markup("")
        return node(
            "p", f"Preset: {found['steps']} steps, rank {found['rank']}, batch {found['batch']}, "
            f"learning rate {found['lr']:g}.",
        )  # fmt: skip


def _runs(runs: list[Job], chosen: str | None) -> Any:
    """The list of runs; the newest is chosen where none was."""
    if not runs:
        return gr.skip()
    named = [(f"{job.request['name']}, {progress.WORDS[job.state]}", job.id) for job in runs]
    if any(job.id == chosen for job in runs):
        return gr.update(choices=named, visible=True)
    return gr.update(choices=named, value=runs[0].id, visible=True)


def request_of(
    data: str | None, name: str, kind: str, trigger: str, steps: float, rank: float, batch: float, lr: float,
    seed: float, prompts: str, count: float,
) -> TrainRequest:  # fmt: skip
    """What the queue takes for a run; raises :class:`UsageError` that names the field."""
    numbers = {
        "steps": int(steps or 0),
        "rank": int(rank or 0),
        "batch": int(batch or 0),
        "lr": float(lr or 0),
    }
    lines = [line.strip() for line in (prompts or "").splitlines() if line.strip()]
    sampling = {"sample_count": int(count or 0), **({"sample_prompts": lines} if lines else {})}
    values = {
        "data": data or None, "name": (name or "").strip(), "kind": kind, "trigger": trigger or "",
        "seed": int(seed or 0), "settings": sampling,
        **{name: value for name, value in numbers.items() if value},
    }  # fmt: skip
    hints = {
        "data": "choose training data first",
        "name": "give the adapter a name of letters, digits, - and _",
    }
    return checked_request(TrainRequest, values, hints)


def samples(job: str, names: list[str]) -> Markup | None:
    """What the run draws on the way, newest first; the sheet of a finished one at its own width."""
    if not names:
        return None
    tiles = [
        node(
            "figure", node("img", src=sample(job, name), alt=_said(name), loading="lazy"),
            node("figcaption", _said(name)), cls="lc-figure lc-wide" if name == "final" else "lc-figure",
        )
        for name in reversed(names)
    ]  # fmt: skip
    return node("div", node("h3", "Samples"), node("div", *tiles, cls="lc-results"))


def _said(name: str) -> str:
    return "without and with the adapter" if name == "final" else f"after step {name}"
