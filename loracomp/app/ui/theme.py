"""How the app looks: one accent, system fonts (nothing is fetched), readable in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# Gradio confines a style sheet to what is inside the page's frame; this is about the frame itself.
_NARROW = "@media (max-width: 640px) { .main.fillable { padding-inline: 0 !important; } }"
_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> Any:
    """The Gradio theme: teal on gray; secondary text keeps a contrast of 4.5 : 1 in both modes."""
    from gradio.themes import Base, sizes

    return Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="zinc",
        radius_size=sizes.radius_md,
        spacing_size=sizes.spacing_md,
        text_size=sizes.text_md,
        font=_SANS,
        font_mono=_MONO,
    ).set(
        body_background_fill="#fafafa",
        body_background_fill_dark="#131316",
        body_text_color_subdued="#52525b",
        body_text_color_subdued_dark="#b4b4bd",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1c1c20",
        block_border_color="#e4e4e7",
        block_border_color_dark="#34343a",
        block_label_text_color="#3f3f46",
        block_label_text_color_dark="#d4d4d8",
        block_title_text_color="#3f3f46",
        block_title_text_color_dark="#d4d4d8",
        block_title_text_weight="600",
        block_info_text_color="#52525b",
        block_info_text_color_dark="#b4b4bd",
        block_shadow="none",
        input_placeholder_color="#6b6b76",
        input_placeholder_color_dark="#a1a1aa",
        input_background_fill="#ffffff",
        input_background_fill_dark="#26262b",
        input_border_width="1px",
        input_border_color="#a1a1aa",
        input_border_color_dark="#52525b",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#2dd4bf",
        button_primary_background_fill_hover_dark="#5eead4",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#042f2e",
        button_secondary_background_fill="#f4f4f5",
        button_secondary_background_fill_dark="#2e2e34",
        button_secondary_border_color="#d4d4d8",
        button_secondary_border_color_dark="#4a4a52",
        checkbox_background_color_selected="#0f766e",
        checkbox_background_color_selected_dark="#0d9488",
        checkbox_border_color_selected="#0f766e",
        link_text_color="#0f766e",
        link_text_color_dark="#5eead4",
    )


def page_options() -> dict[str, Any]:
    """What ``gradio.mount_gradio_app`` takes for theme, style sheet, head and footer."""
    return {
        "theme": theme(),
        "css": (_HERE / "style.css").read_text(encoding="utf-8"),
        "head": f"<style>{_NARROW}</style><script>{script('page')}</script>",
        "footer_links": [],
    }


def script(name: str) -> str:
    """The text of one of the scripts beside this file."""
    return (_HERE / f"{name}.js").read_text(encoding="utf-8")
