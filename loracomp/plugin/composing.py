"""What custom pipelines and modular blocks share: a call's adapters, live for that call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import Program
from loracomp.fusion.regions import Masks
from loracomp.fusion.syntax import Term, parse_term
from loracomp.fusion.variants import program_of
from loracomp.library import open_adapter
from loracomp.pipeline import attach, own_layers

Named = Sequence[Adapter | str]
"""Adapters, or names and files in the short syntax (``style.safetensors:0.8@0.3..1``)."""
Programs = Program | str | Sequence[Program]


def opened(pipe: Any, adapters: Named, program: Programs) -> tuple[list[Adapter], Programs]:
    """The adapters, read where they are named, and the program with the strengths that the names say.

    Args:
        pipe: The pipeline; files for an architecture of its own are read by its layers.
        adapters: Adapters, names and files.
        program: A program, or the name of a method.

    Raises:
        UsageError: A name that cannot be understood, or strengths beside a program that has its own.
    """
    terms = [parse_term(named, "adapters:") if isinstance(named, str) else None for named in adapters]
    own = own_layers(pipe) if any(terms) else None
    found = [
        open_adapter(term.source, modules=own) if term else named
        for term, named in zip(terms, adapters, strict=True)
    ]
    ready = [adapter for adapter in found if isinstance(adapter, Adapter)]
    if not isinstance(program, str):
        if loud := [term for term in terms if term and term.settings != "1"]:
            raise UsageError(f"{loud[0]}: the program has the strengths already; name {loud[0].source} alone")
        return ready, program
    said = [term or Term("adapter") for term in terms]
    return ready, program_of(said, ready, program, {})


class Composing:
    """Beside a diffusers pipeline class: its call takes adapters, which are live for that call alone."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        plain = next(base.__call__ for base in cls.__mro__[1:] if "__call__" in vars(base))

        @wraps(plain)
        def call(
            self: Any,
            *args: Any,
            adapters: Named = (),
            program: Programs = "merge",
            masks: Masks = (),
            **settings: Any,
        ) -> Any:
            if not adapters:
                return plain(self, *args, **settings)
            with attach(self, *opened(self, adapters, program), masks=masks):
                return plain(self, *args, **settings)

        cls.__call__ = call  # type: ignore[method-assign]
