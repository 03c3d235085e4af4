"""Importing Gradio in half of its time."""

from __future__ import annotations

import inspect
from typing import Any


def import_gradio() -> Any:
    """The gradio package, imported without writing its stub files for editors.

    As it is imported, Gradio parses the source of each of its components and writes a ``.pyi`` file beside
    it, which takes longer than all the rest. It leaves that out for classes without a file.
    """
    found = inspect.getfile

    def no_file_for_components(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("stub files are for editors")
        return found(thing)

    inspect.getfile = no_file_for_components  # type: ignore[assignment]
    try:
        import gradio
    finally:
        inspect.getfile = found
    return gradio
