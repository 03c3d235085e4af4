"""Edits of factors that some methods make once, when adapters are attached.

Whatever can be a gate is one (:mod:`loracomp.fusion.program`); what mixes directions in an adapter is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion.program import Program
from loracomp.registry import Registry

Edit = Callable[..., list[Adapter]]
"""Adapters and the keyword options of a method to as many adapters, of the same ranks."""

EDITS: Registry[Edit] = Registry("edit")
"""By name of the method that needs the edit."""

Key = tuple[str, tuple[int, ...], Mapping[str, Any]]


def key(programs: Sequence[Program]) -> Key | None:
    """What decides the edit of programs that run side by side; None where there is none.

    Raises:
        UsageError: They need different edits of the same adapters.
    """
    keys = [_key(program) for program in programs]
    if any(other != keys[0] for other in keys):
        raise UsageError(
            f"images with different edits of the same adapters ({', '.join(p.method for p in programs)}); "
            "draw them one after another"
        )
    return keys[0]


def edited(adapters: Sequence[Adapter], programs: Sequence[Program]) -> list[Adapter]:
    """The adapters as the programs' method wants their factors; those that are always on stay as they are.

    Args:
        adapters: In the order of the programs' weights.
        programs: The programs that will run, with their weights.

    Raises:
        UsageError: As :func:`key`, or an option that the method does not take.
        BaseMismatchError: Adapters of different bases where the edit compares them.
    """
    wanted, result = key(programs), list(adapters)
    if wanted is None:
        return result
    method, always, options = wanted
    free = [index for index in range(len(result)) if index not in always]
    changed = EDITS[method]([result[index] for index in free], **options) if free else []
    for index, adapter in zip(free, changed, strict=True):
        result[index] = adapter
    return result


def _key(program: Program) -> Key | None:
    return (program.method, program.always, dict(program.options)) if program.method in EDITS else None
