"""Importing Gradio, and building its page, in a third of the time.

What takes long there serves editors, data frames, Gradio's own command line and servers that are thrown away.
Each part is left out for that while and is as it was afterwards; a Gradio that has no such part any more is
imported and builds its page as ever.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import ssl
import sys
import typing
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

_LATER = ("pandas",)
_NEVER: dict[str, tuple[str, ...]] = {
    "gradio.cli": ("deploy",),
    "gradio.external": ("load", "load_chat", "load_openapi"),
    "httpx._main": ("main",),
}


def import_gradio() -> Any:
    """The gradio package, imported without what this app has no use for."""
    if "gradio" in sys.modules:
        return sys.modules["gradio"]
    with ExitStack() as parts:
        for part in (lean, _no_stub_files, _no_rendered_docs, _no_programs, _no_data_frames, _trust_later):
            parts.enter_context(part())
        import gradio
    return gradio


@contextmanager
def lean() -> Iterator[None]:
    """Imports what is inside without looking for garbage, and builds pydantic's models when they are used."""
    import pydantic

    before, searched = pydantic.BaseModel.model_config, gc.isenabled()
    pydantic.BaseModel.model_config = {**before, "defer_build": True}
    gc.disable()
    try:
        yield
    finally:
        pydantic.BaseModel.model_config = before
        for model in _below(pydantic.BaseModel):
            # What is made of them from now on, FastAPI's fields above all, is made whole.
            model.model_config.pop("defer_build", None)
        if searched:
            gc.enable()


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


@contextmanager
def remembered() -> Iterator[None]:
    """Answers each question about a function's parameters once: Gradio asks anew for each component."""
    asked = ((inspect, "signature"), (inspect, "getfullargspec"), (typing, "get_type_hints"))
    found = [getattr(module, name) for module, name in asked]
    for (module, name), function in zip(asked, found, strict=True):
        setattr(module, name, _once(function))
    try:
        yield
    finally:
        for (module, name), function in zip(asked, found, strict=True):
            setattr(module, name, function)


def _once(function: Any) -> Any:
    known: dict[Any, Any] = {}

    def answer(about: Any, *values: Any, **named: Any) -> Any:
        if values or named or not isinstance(about, FunctionType):
            return function(about, *values, **named)
        if about not in known:
            known[about] = function(about)
        found = known[about]
        return dict(found) if isinstance(found, dict) else found

    return answer


class _Later(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _below(kind: Any) -> Iterator[Any]:
    for model in kind.__subclasses__():
        yield model
        yield from _below(model)


@contextmanager
def _no_data_frames() -> Iterator[None]:
    """Puts off the import of pandas until a table asks for it."""
    with _in_place_of({name: _Later(name) for name in _LATER if name not in sys.modules}):
        yield


@contextmanager
def _no_programs() -> Iterator[None]:
    """Leaves out ``gradio deploy``, models elsewhere, and what else belongs to programs of other packages.

    What is named in :data:`_NEVER` is imported when it is called.
    """
    stand_ins = {name: _stand_in(name, parts) for name, parts in _NEVER.items() if name not in sys.modules}
    with _in_place_of(stand_ins):
        yield


@contextmanager
def _in_place_of(put: Mapping[str, ModuleType]) -> Iterator[None]:
    """Modules that are found by these names, until others have taken their place or the context ends."""
    sys.modules.update(put)
    try:
        yield
    finally:
        for name, module in put.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _stand_in(name: str, parts: tuple[str, ...]) -> ModuleType:
    made: Any = ModuleType(name)
    made.__path__ = []

    def calling(part: str) -> Any:
        return lambda *values, **named: getattr(importlib.import_module(name), part)(*values, **named)

    for part in parts:
        setattr(made, part, calling(part))
    return made


class _Trusting(ssl.SSLContext):
    """A context that reads the certificates it trusts with its first connection: clients made in passing
    read the same hundreds of them, each for itself, and are never used."""

    def wrap_socket(self, *values: Any, **named: Any) -> Any:
        return _trusted(self).wrap_socket(*values, **named)

    def wrap_bio(self, *values: Any, **named: Any) -> Any:
        return _trusted(self).wrap_bio(*values, **named)


def _trusted(context: Any) -> ssl.SSLContext:
    kept = context.__dict__.pop("kept")
    context.__class__ = ssl.SSLContext
    for values, named in kept:
        context.load_verify_locations(*values, **named)
    return context


@contextmanager
def _trust_later() -> Iterator[None]:
    """Puts off reading certificates in contexts that are made meanwhile."""

    def load_verify_locations(context: Any, *values: Any, **named: Any) -> None:
        context.__class__ = _Trusting
        context.__dict__.setdefault("kept", []).append((values, named))

    ssl.SSLContext.load_verify_locations = load_verify_locations  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del ssl.SSLContext.load_verify_locations


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
