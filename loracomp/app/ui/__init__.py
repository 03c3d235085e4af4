"""The page: seven tabs over one running app."""

from __future__ import annotations

from typing import Any

from loracomp.app.ui.theme import page_options

__all__ = ["build", "page_options"]


def build(app: Any) -> Any:
    """The page as ``gradio.Blocks``, to be mounted with :func:`page_options`.

    Args:
        app: What is running (:class:`loracomp.app.state.App`).
    """
    from loracomp.app.ui.page import page

    return page(app)
