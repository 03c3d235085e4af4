"""Importing Gradio, and building its page, in a third of the time.

What takes long there serves editors, data frames, Gradio's own command line and servers that are thrown away.
Each part is left out for that while and is as it was afterwards; a Gradio that has no such part any more is
imported and builds its page as ever.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

_LATER = ("pandas",)
_NEVER = "gradio.cli"


def import_gradio() -> Any:
    """The gradio package, imported without what this app has no use for."""
    if "gradio" in sys.modules:
        return sys.modules["gradio"]
    with ExitStack() as parts:
        for part in (_no_stub_files, _no_rendered_docs, _no_command_line, _no_data_frames):
            parts.enter_context(part())
        import gradio
    return gradio


def frontend() -> Path:
    """Gradio's scripts and styles as they are served."""
    return Path(import_gradio().__file__).parent / "templates" / "frontend"


@contextmanager
def one_server() -> Iterator[None]:
    """Leaves out the servers that Gradio makes for a page as it opens, queues and closes it.

    The page is served by the one that mounting makes.
    """
    from gradio import blocks

    found = getattr(blocks, "App", None)
    if found is None:
        yield
        return
    blocks.App = SimpleNamespace(create_app=lambda *values, **named: None)
    try:
        yield
    finally:
        blocks.App = found


class _Later(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _no_data_frames() -> Iterator[None]:
    """Puts off the import of pandas until a table asks for it."""
    put = {name: _Later(name) for name in _LATER if name not in sys.modules}
    sys.modules.update(put)
    try:
        yield
    finally:
        for name, module in put.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@contextmanager
def _no_command_line() -> Iterator[None]:
    """Leaves out ``gradio deploy`` and what else belongs to Gradio's own program."""
    empty: Any = ModuleType(_NEVER)
    empty.__path__, empty.deploy = [], None
    sys.modules[_NEVER] = empty
    try:
        yield
    finally:
        sys.modules.pop(_NEVER, None)


@contextmanager
def _no_stub_files() -> Iterator[None]:
    """Keeps Gradio from parsing the source of each component to write a ``.pyi`` file beside it.

    It leaves that out for classes without a file.
    """
    found = inspect.getfile

    def no_file_for_components(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("stub files are for editors")
        return found(thing)

    inspect.getfile = no_file_for_components  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = found


@contextmanager
def _no_rendered_docs() -> Iterator[None]:
    """Keeps Gradio from compiling a template for the docstring of each event of each component."""
    import jinja2

    made = jinja2.Template.__dict__["__new__"]

    def as_written(kind: Any, source: str, *values: Any, **named: Any) -> Any:
        return SimpleNamespace(render=lambda **names: source)

    jinja2.Template.__new__ = staticmethod(as_written)  # type: ignore[assignment]
    try:
        yield
    finally:
        jinja2.Template.__new__ = made  # type: ignore[method-assign]
