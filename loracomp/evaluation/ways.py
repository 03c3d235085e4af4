"""The ways to compose that a benchmark compares, by the names that its ``--method`` takes.

``NAME`` or ``NAME:OPTION=VALUE,…`` is a live method. ``file-NAME`` is a merge method: the adapters become one
adapter first, as ``loracomp merge`` would write it, and that one is attached; its options may hold ``rank``.
What averages is attached with the sum of the weights, so that every file stands for the same sum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import METHODS, Program
from loracomp.fusion.offline import MERGES, merge

FILE = "file-"
_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")


@dataclass(frozen=True)
class Way:
    """A way to compose.

    Attributes:
        program: What runs, its weights still open.
        merger: Merge method that is applied before; empty for none.
        options: Keyword arguments of the merge.
    """

    program: Program
    merger: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(
        self, adapters: Sequence[Adapter], weights: Sequence[float]
    ) -> tuple[list[Adapter], list[float]]:
        """The adapters to attach and their weights."""
        if not self.merger or len(adapters) < 2:
            return list(adapters), list(weights)
        strength = sum(weights) if MERGES[self.merger].averages else 1.0
        return [merge(adapters, weights, self.merger, **self.options)], [strength]


def way(method: str) -> Way:
    """The way behind a name.

    Raises:
        UnknownNameError: No such method.
        UsageError: Options that are not of this form, or that the method does not take.
    """
    name, _, text = method.partition(":")
    options = _options(method, text)
    if not name.startswith(FILE):
        METHODS.entry(name)
        found = Program(name, (1.0, 1.0), options)
        found.table(4)
        return Way(replace(found, weights=()))
    merger = name.removeprefix(FILE)
    MERGES[merger].check(merger, {key: value for key, value in options.items() if key != "rank"})
    return Way(Program("merge"), merger, options)


def _options(method: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in _OUTSIDE_BRACKETS.split(text) if text else ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--method {method}: write NAME:OPTION=VALUE, for example switch:period=0.1")
        try:
            options[key.strip()] = json.loads(value)
        except ValueError:
            options[key.strip()] = value
    return options
