"""Gated fusion as a method: the gates of merge, with a learned factor in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.gated.static import factors
from loracomp.fusion.gated.weights import GateWeights, open_gate, shipped
from loracomp.fusion.program import METHODS, GateTable, Program

NAME = "gated"


@METHODS.register(NAME, summary="a learned gate per layer, token, channel and step", paper="2508.02107")
def gated(weights: Tensor, steps: int, *, gate: str = "", amount: float = 1.0, table: str = "") -> GateTable:
    """Σ wᵢ (1 + amount (factorᵢ - 1)) ⊙ ΔWᵢ x: merge, each output times what the gate makes of it.

    The table is that of merge; :mod:`loracomp.fusion.gated.live` does the rest. One adapter is not gated.

    Args:
        weights: Shape (adapters,).
        steps: Number of denoising steps.
        gate: File that ``loracomp train gate`` wrote; the shipped one by default.
        amount: How far to follow the gate, 0 for merge and 1 for the gate as it was trained.
        table: File of constants by layer and step that ``compose --explain`` wrote for these adapters; they
            take the place of the gate, and the program costs what any other does and can be folded.

    Raises:
        UsageError: Options of the wrong form, or a table for another number of adapters.
        ResourceError: There is no such table.
        FormatError: It is no table.

    Reference: AutoLoRA, arXiv:2508.02107, fine-grained gated fusion, with terms of our own.
    """
    if not isinstance(gate, str):
        raise UsageError(f"gate {gate!r}: the path of a gate file is needed")
    if not isinstance(amount, (int, float)) or not 0 <= amount <= 2:
        raise UsageError(f"amount {amount!r} is outside [0, 2]; 1 is the gate as it was trained")
    plain = GateTable(weights.expand(steps, 1, -1).clone(), torch.ones(steps, 1))
    if not isinstance(table, str):
        raise UsageError(f"table {table!r}: the path of a file that compose --explain wrote is needed")
    if not table or len(weights) == 1:
        return plain
    found = factors(table, steps, len(weights))
    return replace(plain, blocks=({name: 1 + amount * (rows - 1) for name, rows in found.items()},))


def chosen(programs: Sequence[Program]) -> GateWeights | None:
    """The gate that programs of one batch run with; None where none of them needs one.

    Raises:
        UsageError: They name different gates, or mix methods beside a feature cache.
        ResourceError: There is no such file.
        FormatError: It is no gate.
    """
    amounts = freedom(programs)
    sources = {
        str(program.options.get("gate", ""))
        for program, row in zip(programs, amounts, strict=True)
        if bool(row.any())
    }
    if not sources:
        return None
    if len(sources) > 1:
        raise UsageError(f"images with different gates ({', '.join(sorted(sources))}); draw them apart")
    if len(amounts.unique(dim=0)) > 1 and any(program.cache for program in programs):
        raise UsageError("gated beside other methods in a batch with a feature cache; leave the cache out")
    return open_gate(sources.pop())


def usable(base: str = "glyph") -> tuple[str, ...]:
    """The methods that run on a base as it is installed: ``gated`` where a trained gate ships for it."""
    path = shipped()
    trained = path.is_file() and open_gate("").base == base
    return tuple(name for name in METHODS if trained or name != NAME)


def freedom(programs: Sequence[Program]) -> Tensor:
    """How far each adapter is gated, shape (programs, adapters); 0 where it is always on, or alone."""
    count = max(len(program.weights) for program in programs)
    rows = torch.zeros(len(programs), count)
    for row, program in zip(rows, programs, strict=True):
        free = [index for index in range(len(program.weights)) if index not in program.always]
        if program.method == NAME and len(free) > 1 and not program.options.get("table"):
            row[free] = float(program.options.get("amount", 1.0))
    return rows
