"""What users ask for, made complete and checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import blocks
from loracomp.fusion.adoption import Adopted
from loracomp.fusion.program import Profile, Program

Programs = Program | str | Sequence[Program]


def complete(
    program: Programs,
    weights: Sequence[float] | None,
    adapters: Sequence[Adapter],
    adopted: Adopted | None = None,
) -> tuple[Program, ...]:
    """The programs with exactly one weight per adapter each, adopted ones first, accelerators always on."""
    adopted = adopted or Adopted()
    if not adapters and not adopted.adapters:
        raise UsageError("no adapters given; name at least one, or draw with the base alone")
    if isinstance(program, str):
        program = Program(program)
    programs = (program,) if isinstance(program, Program) else tuple(program)
    if not programs:
        raise UsageError("no programs given; give one, or one per image")
    given = tuple(weights) if weights is not None else None
    return tuple(_complete_one(one, given, adapters, adopted) for one in programs)


def _complete_one(
    program: Program, weights: tuple[float, ...] | None, adapters: Sequence[Adapter], adopted: Adopted
) -> Program:
    before, count = len(adopted.adapters), len(adopted.adapters) + len(adapters)
    values, shift = weights if weights is not None else program.weights, 0
    if before and len(values) in (0, len(adapters)):
        values, shift = (*adopted.weights, *(values or (1.0,) * len(adapters))), before
    values = values or (1.0,) * count if weights is None else values
    if len(values) != count:
        raise UsageError(f"{len(values)} weights for {count} adapters; give one weight per adapter")
    profiles = program.profiles
    if shift and len(profiles) == len(adapters):
        profiles = (*(Profile(),) * before, *profiles)
    if profiles and len(profiles) != count:
        raise UsageError(f"{len(profiles)} profiles for {count} adapters; give one per adapter")
    fast = {before + index for index, adapter in enumerate(adapters) if adapter.accelerator}
    always = tuple(sorted(fast | {shift + index for index in program.always}))
    chosen = replace(program, weights=values, always=always, profiles=profiles)
    chosen.table(1, torch.ones(1))
    return chosen


def check_blocks(programs: Sequence[Program], paths: Mapping[str, Any]) -> None:
    """Refuses a block name that no layer answers to, which would otherwise do nothing in silence."""
    wanted = {name for program in programs for profile in program.profiles for name in profile.blocks}
    if unknown := sorted(wanted - blocks.known(paths) if wanted else ()):
        raise UsageError(
            f"no adapter changes a block {unknown[0]!r}; there are {', '.join(blocks.short(paths))}"
        )
