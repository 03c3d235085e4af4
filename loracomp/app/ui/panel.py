"""Parts of the page that are HTML of our own: real buttons and images, lighter than components."""

from __future__ import annotations

from typing import Any

from loracomp.app.ui.theme import script


def panel(value: str = "", *, id: str, classes: str = "") -> Any:
    """A ``gradio.HTML`` whose elements raise ``click`` (with ``data-act``) and ``input`` (``data-edit``).

    The event's data are the element's ``data-…`` attributes; of an edit, its ``value`` too.
    """
    import gradio as gr

    return gr.HTML(
        value,
        js_on_load=script("panel"),
        apply_default_css=False,
        elem_id=id,
        elem_classes=["lc-panel", *classes.split()],
    )


def plain(value: str = "", *, id: str, classes: str = "") -> Any:
    """HTML without events."""
    import gradio as gr

    return gr.HTML(
        value,
        js_on_load=None,
        apply_default_css=False,
        elem_id=id,
        elem_classes=["lc-panel", *classes.split()],
    )


def data_of(event: Any) -> dict[str, Any]:
    """What an event of a panel carries; nothing where it is not what a panel sends."""
    found = getattr(event, "_data", None)
    return found if isinstance(found, dict) else {}
