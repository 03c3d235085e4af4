"""Programs laid out for a run: rows of the batch, their gates on the device, their mixing and regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from loracomp.errors import UsageError
from loracomp.fusion import branches, regions
from loracomp.fusion.branches import Rows
from loracomp.fusion.gates import GateBank
from loracomp.fusion.program import GateTable, Program
from loracomp.fusion.regions import Masks, Regions
from loracomp.fusion.stacked import StackedUpdate
from loracomp.fusion.steps import sigmas_of


@dataclass(frozen=True)
class Run:
    """What a pipeline tells about the run at hand.

    Attributes:
        scheduler: The scheduler that it uses now.
        guided: Whether its batch is the unconditional half followed by the conditional one.
    """

    scheduler: Callable[[], Any]
    guided: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Call:
    """One call of a denoiser as the pipeline makes it.

    Attributes:
        module: The denoiser.
        sample: The noisy latent.
        arguments: Its keyword arguments.
        halves: Which halves of guidance its batch holds.
    """

    module: nn.Module
    sample: Tensor
    arguments: Mapping[str, Any]
    halves: tuple[str, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Calls of one run with equal keys have the same score."""
        return (tuple(self.sample.shape), self.sample.device, self.halves)


@dataclass(frozen=True, eq=False)
class Score:
    """What all calls of a run with one key have in common, on the device where it has to be.

    Attributes:
        rows: The rows.
        columns: Gates as each bank takes them, shape (steps, rows or 1, columns).
        inside: The last bank's on the CPU, of the columns that are in use.
        program: The program of each row of gates.
        index: The pipeline's row behind each row; None where the batch stays as it is.
        mixing: Matrices from rows to the pipeline's rows, shape (steps, batch, rows), or None.
        regions: Gates per token, or None.
    """

    rows: Rows
    columns: tuple[Tensor, ...]
    inside: Tensor
    program: Tensor
    index: Tensor | None
    mixing: Tensor | None
    regions: Regions | None

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows.rows)


class Scores:
    """The programs of an attachment, laid out once per run and kind of call.

    Args:
        updates: The denoiser's stacked layers by path; may be empty.
        run: What the pipeline tells about its run.
        masks: Where each adapter acts; empty for everywhere.
    """

    def __init__(self, updates: Mapping[str, StackedUpdate], run: Run, masks: Masks = ()) -> None:
        self.updates = updates
        self.run = run
        self.masks = masks
        self._known: dict[tuple[Any, ...], Score] = {}
        self._masked = False
        self._times: Tensor | None = None
        self._sigmas: Tensor | None = None
        self.divide(())

    def divide(self, inside: Sequence[str]) -> None:
        """Splits the layers into those outside of some blocks and those inside, a bank for each.

        Rows of the layers inside can then be written apart. Without blocks everything is outside.

        Args:
            inside: Module paths of the blocks.
        """
        groups: tuple[dict[str, StackedUpdate], ...] = ({}, {})
        for path, update in self.updates.items():
            within = any(path.partition(".")[2].startswith(f"{block}.") for block in inside)
            groups[within][path] = update
        self.banks = tuple(GateBank(group) if group else None for group in groups)
        self.rewritten()

    def rewritten(self) -> None:
        """Other adapters were written into the layers."""
        self._arranged: bool | None = None
        self.forget()

    def set_programs(self, programs: Sequence[Program]) -> None:
        """Replaces the programs."""
        self.programs = tuple(programs)
        self.forget()

    def forget(self) -> None:
        """A new run begins."""
        self._known.clear()

    def at(self, call: Call) -> Score:
        """The score of a call.

        Raises:
            UsageError: Not one program, nor one per image.
        """
        if call.key not in self._known:
            self._known[call.key] = self._compose(call)
        return self._known[call.key]

    def _compose(self, call: Call) -> Score:
        batch, device = len(call.sample), call.sample.device
        if batch // len(call.halves) != len(self.programs) != 1:
            raise UsageError(
                f"{len(self.programs)} programs for a batch of {batch // len(call.halves)} images; "
                "give one program, or one per image"
            )
        tables = [program.table(*self._course()) for program in self.programs]
        self._arrange(tables)
        rows = branches.arrange(tables, batch, call.halves)
        rows, placed = self._placed(rows, call)
        hosts = [
            rows.gates[..., :0] if bank is None else bank.columns(rows.gates, rows.programs)
            for bank in self.banks
        ]
        inner = self.banks[-1]
        return Score(
            rows,
            tuple(host.to(device) for host in hosts),
            hosts[-1] if inner is None else hosts[-1][..., inner.used],
            rows.programs.to(device),
            None if rows.single else rows.sources.to(device),
            None if rows.single else rows.mixing().to(device),
            placed,
        )

    def _course(self) -> tuple[int, Tensor | None]:
        """Number of steps of the run, and their noise levels."""
        scheduler = self.run.scheduler()
        if self._times is not scheduler.timesteps:
            self._times, self._sigmas = scheduler.timesteps, sigmas_of(scheduler)
        return len(scheduler.timesteps), self._sigmas

    def _arrange(self, tables: Sequence[GateTable]) -> None:
        """Tells the banks about block factors and ranks; without any, which layer is whose stays as it is."""
        special = any(table.blocks or table.ranks for table in tables)
        if special or self._arranged is not False:
            for bank in self.banks:
                if bank is not None:
                    bank.arrange(tables, tables[0].gates.shape[2])
        self._arranged = special

    def _placed(self, rows: Rows, call: Call) -> tuple[Rows, Regions | None]:
        """The rows without adapters that have no place, and the regions of the others."""
        masks = regions.of_programs(self.programs, self.masks)
        if all(mask is None for mask in masks):
            if self._masked:
                for update in self.updates.values():
                    update.regions = None
            self._masked = False
            return rows, None
        self._masked = True
        layout = regions.grids(call.module, call.sample, call.arguments)
        return branches.silenced(rows, regions.presence(masks)), regions.lay(
            self.updates, masks, layout, rows.pictures, call.sample.device
        )
