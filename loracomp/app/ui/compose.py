"""The tab Compose: pick adapters by looking, say what to draw, watch it come about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from loracomp.app.ui import masks
from loracomp.app.ui.form import Form, method_part, picked_part, prompt_part, settings_part
from loracomp.app.ui.markup import Markup, empty, node
from loracomp.app.ui.panel import panel, plain

EMPTY = empty("Your picture appears here", "Pick an adapter on the left, press Generate.")
NO_PICKS = node("p", "No adapter picked: the base model draws alone.", cls="lc-quiet")


@dataclass(frozen=True, eq=False)
class Finder:
    """Components that choose what the gallery shows."""

    query: Any
    tag: Any
    licence: Any
    sort: Any
    compatible: Any
    picture: Any
    plain: Any
    said: Any
    gallery: Any
    page: Any
    mode: Any


@dataclass(frozen=True, eq=False)
class Compose:
    """All of the tab."""

    form: Form
    finder: Finder
    auto: Any
    why: Any
    none: Any
    report: Any
    check: Any
    generate: Any
    cancel: Any
    said: Any
    stage: Any
    job: Any
    timer: Any
    mask: tuple[Any, Any, Any, Any, Any]
    masked: Any
    told: Any


def tab() -> Compose:
    """Lays the tab out."""
    with gr.Row(elem_classes="lc-columns"):
        with gr.Column(scale=4, min_width=300):
            finder = _finder()
        with gr.Column(scale=5, min_width=320):
            made = _middle()
        with gr.Column(scale=4, min_width=300):
            plain("<h2>Picture</h2>", id="picture-title")
            stage = panel(EMPTY, id="stage")
            job = gr.State("")
            timer = gr.Timer(0.7, active=False)
    return Compose(finder=finder, stage=stage, job=job, timer=timer, **made)


def _finder() -> Finder:
    plain("<h2>Adapters</h2>", id="adapters-title")
    query = gr.Textbox(
        label="Search",
        placeholder="name, trigger word, or what it draws",
        elem_id="find",
        lines=1,
        max_lines=1,
    )
    with gr.Accordion("Filters and search by picture", open=False, elem_id="filters"):
        compatible = gr.Checkbox(True, label="Only those that fit the model and each other", elem_id="fits")
        with gr.Row():
            tag = gr.Dropdown(["any"], value="any", label="Tag", min_width=120, elem_id="tag")
            licence = gr.Dropdown(["any"], value="any", label="License", min_width=120, elem_id="licence")
        sort = gr.Radio(["name", "newest", "most used"], value="name", label="Order", elem_id="sort")
        picture = gr.File(label="Search by a picture", file_types=["image"], height=150, elem_id="by-picture")
    said = plain(id="find-notice")
    back = gr.Button("Show all adapters again", size="sm", visible=False, elem_id="find-all")
    gallery = panel(id="shelf")
    return Finder(
        query, tag, licence, sort, compatible, picture, back, said, gallery, gr.State(1), gr.State(("", ""))
    )


def _middle() -> dict[str, Any]:
    plain("<h2>Mixture</h2>", id="mixture-title")
    prompt, example = prompt_part()
    with gr.Row(elem_classes="lc-actions"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=2, min_width=130)
        auto = gr.Button("Choose for me", elem_id="auto", scale=2, min_width=150)
        cancel = gr.Button("Cancel", elem_id="cancel", visible=False, scale=1, min_width=90)
    said = plain(id="compose-notice")
    why = panel(id="why")
    none = plain(NO_PICKS, id="no-picks")
    picks = picked_part()
    mask = masks.mask_part()
    method, told = method_part()
    check = gr.Button("How do these adapters go together?", size="sm", visible=False, elem_id="diagnose")
    report = panel(id="diagnosis")
    form = Form(
        prompt=prompt,
        example=example,
        picks=picks,
        method=method,
        masks=gr.State({}),
        rest=gr.State({}),
        **settings_part(),
    )
    return {
        "form": form, "auto": auto, "why": why, "none": none, "report": report, "check": check,
        "generate": generate, "cancel": cancel, "said": said, "mask": mask, "masked": gr.State(""),
        "told": told,
    }  # fmt: skip


def stage_of(images: list[Markup]) -> Markup:
    """Finished images side by side."""
    return node("div", *images, cls="lc-results" if len(images) > 1 else "lc-stage", data_state="done")
