"""The gates of all stacked layers of a model in one tensor, so that a step is one gather and one copy."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loracomp.fusion import blocks
from loracomp.fusion.program import GateTable
from loracomp.fusion.stacked import StackedUpdate


class GateBank:
    """Writes the gates of stacked layers.

    Strengths come as rows of columns, one column per (group of layers, adapter); a group is a set of layers
    to which the same block factors apply. Each layer's ``gate`` is a view into a row block that stays where
    it is, so compiled code that reads it stays valid.

    Args:
        updates: The stacked layers by module path.
    """

    def __init__(self, updates: Mapping[str, StackedUpdate]) -> None:
        self.updates = dict(updates)
        self.writes = 0
        self._widths = [update.capacity for update in self.updates.values()]
        self._placed: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        self._shown: Tensor | None = None
        self.arrange([], 0)

    def arrange(self, tables: Sequence[GateTable], adapters: int) -> None:
        """Takes over block factors and numbers of ranks, and the layers' owners after a swap.

        Args:
            tables: One table per program.
            adapters: Number of adapters.
        """
        found = [_factors(path, tables, adapters) for path in self.updates]
        keys = [tuple(f.numpy().tobytes() for f in factors) for factors in found]
        groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self._groups = [factors for key, factors in dict(zip(keys, found, strict=True)).items() if key]
        owner = torch.cat([update.owner for update in self.updates.values()])
        group = torch.tensor([groups[key] for key in keys]).repeat_interleave(torch.tensor(self._widths))
        self.column = group * adapters + owner
        scale = torch.cat([update.scale for update in self.updates.values()])
        self.scale = torch.stack([self._kept(table, owner) for table in tables] or [torch.ones(())]) * scale
        self.used = self.column[(self.scale != 0).any(0)].unique()

    def _kept(self, table: GateTable, owner: Tensor) -> Tensor:
        """1 for the ranks that a table uses, 0 for the others."""
        if not any(table.ranks):
            return torch.ones(len(owner))
        place = torch.cat([update.place for update in self.updates.values()])
        limit = torch.tensor([count or torch.iinfo(torch.long).max for count in table.ranks])
        return (place < limit[owner]).float()

    def columns(self, gates: Tensor, program: Tensor) -> Tensor:
        """Strengths (steps, rows, adapters) as columns (steps, rows, groups · adapters).

        Args:
            gates: Strengths.
            program: Which table each row follows, shape (rows,).
        """
        if not self._groups:
            return gates
        parts = []
        for factors in self._groups:
            steps = max(len(f) for f in factors)
            whole = torch.stack([f.expand(steps, -1) for f in factors], dim=1)
            parts.append(gates * whole[:, program])
        return torch.stack(parts, dim=2).flatten(2)

    def write(self, rows: Tensor, program: Tensor | None = None) -> None:
        """Sets all gates.

        Args:
            rows: Columns of one step, shape (rows, groups · adapters), on the device that calculates; one row
                serves all samples.
            program: Which table each row follows, shape (rows,), where tables differ in their ranks.
        """
        if self.column.device != rows.device:
            self.column, self.scale = self.column.to(rows.device), self.scale.to(rows.device)
        scale = self.scale if program is None or len(self.scale) == 1 else self.scale[program]
        target = self._target(len(rows), rows.device)
        target.copy_(rows.index_select(1, self.column).mul_(scale))
        self.writes += 1

    def _target(self, count: int, device: torch.device) -> Tensor:
        """The row block for ``count`` rows, shown to the layers."""
        dtype = next(iter(self.updates.values())).down.dtype
        key = (count, device, dtype)
        if key not in self._placed:
            # Rows written in inference mode have to be writable outside it later.
            with torch.inference_mode(False):
                self._placed[key] = torch.zeros(count, sum(self._widths), device=device, dtype=dtype)
        target = self._placed[key]
        if self._shown is not target:
            self._show(target)
        return target

    def _show(self, target: Tensor) -> None:
        for update, view in zip(self.updates.values(), target.split(self._widths, 1), strict=True):
            # Compiled graphs then read the gates where they are; eager runs need not import the compiler.
            if "torch._dynamo" in sys.modules:
                torch._dynamo.mark_static_address(view, guard=False)
            # Past nn.Module's own bookkeeping, which takes longer than the rest of a step.
            vars(update)["gate"] = view
        self._shown = target


def _factors(path: str, tables: Sequence[GateTable], adapters: int) -> list[Tensor]:
    """Block factors of a layer for each table, shapes (1 or steps, adapters); empty where all are 1."""
    if not any(table.blocks for table in tables):
        return []
    found = []
    for table in tables:
        factor = torch.ones(1, adapters)
        for mapping in table.blocks:
            value = blocks.lookup(path, mapping)
            factor = factor if value is None else factor * value.reshape(-1, adapters)
        found.append(factor)
    return found
