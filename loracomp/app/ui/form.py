"""The form of Compose: what an image is asked for with, as components and as a request."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from loracomp.app.ui.panel import plain
from loracomp.app.ui.picks import checked, curve, picks_box

SEEDS = 2**31
OWN = "the model's own"


@dataclass(frozen=True, eq=False)
class Form:
    """The components, in the order in which :meth:`inputs` gives them.

    Attributes:
        prompt: What to draw.
        negative: What to avoid.
        picks: The picked adapters.
        masks: By adapter id, a painted mask as the request takes it.
        method: Composition method.
        steps: Denoising steps; 0 for the model's own.
        guidance: Guidance scale; the same.
        scheduler: A name, or :data:`OWN`.
        seed: Seed of the first image.
        lock: Whether the seed stays.
        batch: Images at once.
        width: Pixels; 0 for the model's own.
        height: The same.
        example: The prompt that was filled in for the person, while it stands.
        rest: What a restored image had beyond this form, see :mod:`loracomp.app.ui.restoring`.
    """

    prompt: Any
    negative: Any
    picks: Any
    masks: Any
    method: Any
    steps: Any
    guidance: Any
    scheduler: Any
    seed: Any
    lock: Any
    batch: Any
    width: Any
    height: Any
    example: Any
    rest: Any

    def inputs(self) -> list[Any]:
        """All components."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Values:
    """What the components of :class:`Form` hold, in the same order."""

    prompt: str
    negative: str
    picks: Any
    masks: dict[str, str]
    method: str
    steps: float | None
    guidance: float | None
    scheduler: str
    seed: float | None
    lock: bool
    batch: float
    width: float | None
    height: float | None
    example: str
    rest: dict[str, Any]


COUNT = len(fields(Values))


def prompt_part() -> tuple[Any, Any]:
    """The prompt and what fills it in."""
    prompt = gr.Textbox(
        label="Prompt", lines=2, max_lines=6, placeholder="What should the picture show?", elem_id="prompt"
    )
    return prompt, gr.State("")


def method_part() -> tuple[Any, Any]:
    """The method and its explanation; the list comes when the model is there."""
    method = gr.Dropdown(["merge"], value="merge", label="Method", elem_id="method", filterable=True)
    return method, plain(id="method-told", classes="lc-quiet")


def methods(app: Any, chosen: str = "") -> Any:
    """The list of methods, the plain one first, and the one chosen, which is known before the others are."""
    if app.engine_state()["state"] == "loading":
        return gr.update(choices=[*dict.fromkeys(("merge", chosen))], value=chosen) if chosen else gr.skip()
    named = sorted((one["name"] for one in app.methods()), key=lambda name: (name != "merge", name))
    return gr.update(choices=named, value=chosen) if chosen else gr.update(choices=named)


def schedulers(app: Any, chosen: str = "") -> Any:
    """The list of schedulers; the same."""
    if app.engine_state()["state"] == "loading":
        return gr.update(choices=[*dict.fromkeys((OWN, chosen))], value=chosen) if chosen else gr.skip()
    named = [OWN, *(one["name"] for one in app.schedulers())]
    return gr.update(choices=named, value=chosen) if chosen else gr.update(choices=named)


def settings_part() -> dict[str, Any]:
    """Everything that has a good default."""
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        negative = gr.Textbox(label="Avoid", placeholder="What should not be in the picture?", lines=1)
        with gr.Row():
            steps = gr.Number(0, label="Steps", precision=0, minimum=0, elem_id="steps", min_width=110)
            guidance = gr.Number(0, label="Guidance", minimum=0, elem_id="guidance", min_width=110)
            batch = gr.Number(1, label="Images", precision=0, minimum=1, elem_id="batch", min_width=110)
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed", min_width=150)
            lock = gr.Checkbox(False, label="Keep this seed", elem_id="lock", min_width=150)
        plain(
            "Steps, guidance, width and height of 0 are the model's own.", id="own-told", classes="lc-quiet"
        )
        with gr.Row():
            scheduler = gr.Dropdown([OWN], value=OWN, label="Scheduler", elem_id="scheduler", min_width=260)
            width = gr.Number(0, label="Width", precision=0, minimum=0, step=8, min_width=90)
            height = gr.Number(0, label="Height", precision=0, minimum=0, step=8, min_width=90)
    return {
        "negative": negative, "steps": steps, "guidance": guidance, "seed": seed, "batch": batch,
        "lock": lock, "scheduler": scheduler, "width": width, "height": height,
    }  # fmt: skip


def picked_part() -> Any:
    """The cards of picked adapters."""
    return picks_box()


def request_of(values: Values) -> dict[str, Any]:
    """What the queue takes for an image.

    Raises:
        UsageError: A weight or curve that cannot be read.
    """
    seed = int(values.seed or 0) if values.lock else secrets.randbelow(SEEDS)
    picks = checked(values.picks)
    request = {
        "prompt": values.prompt or "",
        "negative": values.negative or "",
        "adapters": [
            {"id": entry["id"], "weight": float(entry["weight"]), "curve": curve(entry),
             "settings": entry.get("settings", ""),
             "mask": (values.masks or {}).get(entry["id"], "") if entry.get("mask") else ""}
            for entry in picks
        ],
        "method": values.method,
        "steps": int(values.steps) if values.steps else None,
        "guidance": float(values.guidance) if values.guidance else None,
        "seed": seed,
        "batch": int(values.batch or 1),
    }  # fmt: skip
    if values.scheduler and values.scheduler != OWN:
        request["scheduler"] = values.scheduler
    if values.width and values.height:
        request |= {"width": int(values.width), "height": int(values.height)}
    rest = values.rest or {}
    if rest and rest.get("mark") == mark_of(values.method, picks):
        request |= rest["fields"]
    return request


def mark_of(method: str, picks: list[dict[str, Any]]) -> list[Any]:
    """What must not change for the rest of a restored image to hold."""
    return [method, *([entry["id"], float(entry["weight"]), entry.get("points")] for entry in picks)]
