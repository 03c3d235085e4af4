"""A painted mask: what the brush left, as the request takes it."""

from __future__ import annotations

import base64
import io
from typing import Any

import gradio as gr

from loracomp.app.ui.panel import plain

SIDE = 256


def mask_part() -> tuple[Any, Any, Any, Any, Any]:
    """The painter, hidden until an adapter's mask is wanted: (box, title, editor, keep, clear)."""
    with gr.Column(visible=False, elem_id="mask-box", elem_classes="lc-card") as box:
        title = plain(id="mask-title")
        editor = gr.ImageEditor(
            visible=False,
            label="Paint where the adapter acts",
            type="pil",
            sources=(),
            transforms=(),
            layers=False,
            canvas_size=(SIDE, SIDE),
            fixed_canvas=True,
            brush=gr.Brush(default_size=36, colors=["#0f766e"], color_mode="fixed"),
            buttons=[],
            elem_id="mask-editor",
            height=380,
        )
        with gr.Row(elem_classes="lc-actions"):
            keep = gr.Button("Use this mask", variant="primary", size="sm", elem_id="mask-keep")
            clear = gr.Button("Act everywhere", size="sm", elem_id="mask-clear")
    return box, title, editor, keep, clear


def blank() -> dict[str, Any]:
    """An empty canvas."""
    from PIL import Image

    ground = Image.new("RGBA", (SIDE, SIDE), "#ececef")
    return {"background": ground, "layers": [], "composite": ground}


def painted(value: Any) -> str:
    """What was painted: a gray PNG in base64, white where the adapter acts; empty for nothing."""
    from PIL import Image, ImageChops

    layers = (value or {}).get("layers") or []
    mask = Image.new("L", (SIDE, SIDE), 0)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize((SIDE, SIDE))
        mask = ImageChops.lighter(mask, alpha.point(lambda shade: 255 if shade > 127 else 0))
    if mask.getbbox() is None:
        return ""
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
