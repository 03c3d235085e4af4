"""The one hook on the denoiser that makes a gate program happen.

Before each denoiser call it finds the step, copies that step's gates into the stacked layers and, for
programs with several branches, takes the rows of the batch once per branch; after the call it mixes them.
It works through diffusers' ``ModelHook``, so schedulers and pipelines stay untouched, and it stays outside
of compiled graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from loracomp.errors import UsageError
from loracomp.fusion import branches
from loracomp.fusion.branches import CONDITIONAL, UNCONDITIONAL, Rows
from loracomp.fusion.gates import GateBank
from loracomp.fusion.program import Program
from loracomp.fusion.stacked import StackedUpdate
from loracomp.fusion.steps import sigmas_of, step_of


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
class Score:
    """A run's rows, laid out on the device for calls with one batch size."""

    rows: Rows
    columns: Tensor
    index: Tensor | None
    program: Tensor
    mixing: Tensor | None
    halves: int


class GateHook(ModelHook):
    """Runs programs on a denoiser.

    Args:
        updates: The denoiser's stacked layers by path; may be empty (adapters of text encoders only).
        programs: One program, or one per image of a batch; may be replaced between or during runs.
        run: What the pipeline tells about its run.
        chunk: Most rows to compute at once; 0 for no limit.
    """

    def __init__(
        self,
        updates: Mapping[str, StackedUpdate],
        programs: Sequence[Program],
        run: Run,
        chunk: int = 0,
    ) -> None:
        super().__init__()
        self.bank = GateBank(updates) if updates else None
        self.run = run
        self.chunk = chunk
        self.calls = 0
        self.step = -1
        self.attachment: Any = None
        self.prompts: Any = None
        self._repeats = 0
        self._times: Tensor | None = None
        self._scores: dict[tuple[Any, ...], Score] = {}
        self._score: Score | None = None
        self._rest: tuple[Any, ...] | None = None
        self._plain: Callable[..., Any] | None = None
        self.set_programs(programs)

    def set_programs(self, programs: Sequence[Program]) -> None:
        """Replaces the programs; takes effect with the next denoiser call."""
        self.programs = tuple(programs)
        self._arranged = False
        self._scores.clear()

    def compile(self, options: Mapping[str, Any]) -> None:
        """Compiles what this hook wraps, with options of ``torch.compile``; the hook itself stays eager."""
        self._plain = self.fn_ref.forward
        self.fn_ref.forward = torch.compile(self._plain, **options)

    def leave(self) -> None:
        """Undoes :meth:`compile`."""
        if self._plain is not None:
            self.fn_ref.forward, self._plain = self._plain, None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Sets this step's gates and takes the rows of the batch that the programs need."""
        sample: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        self._find_step(timestep)
        self._score = score = self._current(len(sample), sample.device)
        if score.index is not None:
            args = branches.take(args, len(sample), score.index)
            kwargs = branches.take(kwargs, len(sample), score.index)
        if self.prompts is not None:
            kwargs = self._read(kwargs, score, len(sample))
        return self._first_chunk(args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Computes the other chunks, and mixes the rows into one prediction per sample."""
        score = self._score
        assert score is not None
        if self._rest is not None:
            args, kwargs, parts = self._rest
            outputs = [output, *(self._run_chunk(args, kwargs, part) for part in parts)]
            output = branches.joined(outputs)
        if score.mixing is None:
            return output
        matrix = score.mixing[self.step]
        return branches.over(output, lambda prediction: branches.mixed(prediction, matrix))

    def _read(self, kwargs: dict[str, Any], score: Score, batch: int) -> dict[str, Any]:
        """The arguments with the text as each row's adapters read it, where that differs within an image."""
        texts = self.prompts.rows(score.rows, batch // score.halves)
        return branches.replace_texts(kwargs, texts) if texts else kwargs

    def _find_step(self, timestep: Tensor | float) -> None:
        scheduler = self.run.scheduler()
        if self._times is not scheduler.timesteps:
            self._times, self.step = scheduler.timesteps, -1
            self._scores.clear()
        step = step_of(scheduler, timestep)
        self._repeats = self._repeats + 1 if step == self.step else 0
        self.step = step
        self.calls += 1

    def _halves(self, batch: int) -> tuple[str, ...]:
        """Which halves of guidance a batch holds; the second call in a step is the unconditional one."""
        if self.run.guided() and batch % 2 == 0:
            return (UNCONDITIONAL, CONDITIONAL)
        return (UNCONDITIONAL if self._repeats == 1 else CONDITIONAL,)

    def _current(self, batch: int, device: torch.device) -> Score:
        halves = self._halves(batch)
        if batch // len(halves) != len(self.programs) != 1:
            raise UsageError(
                f"{len(self.programs)} programs for a batch of {batch // len(halves)} images; "
                "give one program, or one per image"
            )
        key = (batch, device, halves)
        if key not in self._scores:
            self._scores[key] = self._compose(batch, device, halves)
        return self._scores[key]

    def _compose(self, batch: int, device: torch.device, halves: tuple[str, ...]) -> Score:
        scheduler = self.run.scheduler()
        count, sigmas = len(scheduler.timesteps), sigmas_of(scheduler)
        tables = [program.table(count, sigmas) for program in self.programs]
        if self.bank is not None and not self._arranged:
            self.bank.arrange(tables, tables[0].gates.shape[2])
            self._arranged = True
        rows = branches.arrange(tables, batch, halves)
        columns = self.bank.columns(rows.gates, rows.programs) if self.bank is not None else rows.gates
        return Score(
            rows,
            columns.to(device),
            None if rows.single else rows.sources.to(device),
            rows.programs.to(device),
            None if rows.single else rows.mixing().to(device),
            len(halves),
        )

    def _first_chunk(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        score = self._score
        assert score is not None
        count, self._rest = len(score.rows.rows), None
        if not 0 < self.chunk < count:
            self._write(slice(None))
            return args, kwargs
        parts = [slice(start, start + self.chunk) for start in range(0, count, self.chunk)]
        self._rest = (args, kwargs, parts[1:])
        return self._chunk(args, kwargs, parts[0])

    def _chunk(self, args: Any, kwargs: Any, part: slice) -> tuple[Any, Any]:
        """The rows of one chunk of a batch, with its gates set."""
        assert self._score is not None
        self._write(part)
        count = len(self._score.rows.rows)
        index = torch.arange(count, device=self._score.columns.device)[part]
        return branches.take(args, count, index), branches.take(kwargs, count, index)

    def _run_chunk(self, args: Any, kwargs: Any, part: slice) -> Any:
        args, kwargs = self._chunk(args, kwargs, part)
        return self.fn_ref.forward(*args, **kwargs)

    def _write(self, part: slice) -> None:
        score = self._score
        assert score is not None
        if self.bank is not None:
            part = slice(None) if score.rows.shared else part
            self.bank.write(score.columns[self.step, part], score.program[part])
