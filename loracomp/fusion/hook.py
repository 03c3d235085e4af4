"""The one hook on the denoiser that makes a gate program happen.

Before each denoiser call it finds the step, copies that step's gates into the stacked layers and, for
programs with several branches, takes the rows of the batch once per branch; after the call it mixes them.
It works through diffusers' ``ModelHook``, so schedulers and pipelines stay untouched, and it stays outside
of compiled graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from loracomp.errors import UsageError
from loracomp.fusion import branches, graphs
from loracomp.fusion.branches import CONDITIONAL, UNCONDITIONAL
from loracomp.fusion.cache import FeatureCache
from loracomp.fusion.gated.live import Gating, levels_of
from loracomp.fusion.gated.method import freedom
from loracomp.fusion.program import Program
from loracomp.fusion.regions import Masks
from loracomp.fusion.score import Call, Run, Score, Scores
from loracomp.fusion.stacked import StackedUpdate
from loracomp.fusion.steps import step_of


class GateHook(ModelHook):
    """Runs programs on a denoiser.

    Args:
        updates: The denoiser's stacked layers by path; may be empty (adapters of text encoders only).
        programs: One program, or one per image of a batch; may be replaced between or during runs.
        run: What the pipeline tells about its run.
        chunk: Most rows to compute at once; 0 for no limit.
        masks: Where each adapter acts; empty for everywhere.
    """

    def __init__(
        self,
        updates: Mapping[str, StackedUpdate],
        programs: Sequence[Program],
        run: Run,
        chunk: int = 0,
        masks: Masks = (),
    ) -> None:
        super().__init__()
        self.scores = Scores(updates, run, masks)
        self.cache: FeatureCache | None = None
        self.gating: Gating | None = None
        self.chunk = chunk
        self.calls = 0
        self.step = -1
        self.attachment: Any = None
        self.prompts: Any = None
        self._repeats = 0
        self._times: Tensor | None = None
        self._score: Score | None = None
        self._shown: Score | None = None
        self._rest: tuple[Any, ...] | None = None
        self._plain: Callable[..., Any] | None = None
        self._options: Mapping[str, Any] | None = None
        self.set_programs(programs)

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs that run."""
        return self.scores.programs

    def set_programs(self, programs: Sequence[Program]) -> None:
        """Replaces the programs; takes effect with the next denoiser call."""
        self.scores.set_programs(programs)
        self._freedom = freedom(programs)
        self._followed = bool((self._freedom == 1).all())
        if self.cache is not None:
            self.cache.forget()

    def compile(self, options: Mapping[str, Any]) -> None:
        """Compiles what this hook wraps, with options of ``torch.compile``; the hook itself stays eager."""
        self._options = options
        graphs.watch_hooks(load=True)
        self._compile_all()

    def leave(self) -> None:
        """Undoes :meth:`compile`, and takes the cache off."""
        self._leave_blocks()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Sets this step's gates and takes the rows of the batch that the programs need."""
        sample: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        graphs.watch_hooks()
        self._settle(module)
        self._find_step(args[1] if len(args) > 1 else kwargs["timestep"])
        call = Call(module, sample, kwargs, self._halves(len(sample)))
        self._score = score = self.scores.at(call)
        if score.index is not None:
            args = branches.take(args, len(sample), score.index)
            kwargs = branches.take(kwargs, len(sample), score.index)
        if self.prompts is not None:
            # The text as each row's adapters read it, where that differs within an image.
            kwargs = branches.replace_texts(kwargs, self.prompts.rows(score.rows))
        return self._first_chunk(score, args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Computes the other chunks, and mixes the rows into one prediction per sample."""
        score, rest = self._score, self._rest
        assert score is not None
        self._rest = None
        if rest is not None:
            args, kwargs, parts = rest
            outputs = [output]
            for part in parts:
                some, named = self._chunk(score, args, kwargs, part)
                outputs.append(self.fn_ref.forward(*some, **named))
            output = branches.joined(outputs)
        if score.mixing is None:
            return output
        matrix = score.mixing[self.step]
        return branches.over(output, lambda prediction: branches.mixed(prediction, matrix))

    def _find_step(self, timestep: Tensor | float) -> None:
        scheduler = self.scores.run.scheduler()
        if self._times is not scheduler.timesteps:
            self._times, self.step = scheduler.timesteps, -1
            self.scores.forget()
            if self.cache is not None:
                self.cache.forget()
        step = step_of(scheduler, timestep)
        self._repeats = self._repeats + 1 if step == self.step else 0
        self.step = step
        self.calls += 1

    def _halves(self, batch: int) -> tuple[str, ...]:
        """Which halves of guidance a batch holds; the second call in a step is the unconditional one."""
        if self.scores.run.guided() and batch % 2 == 0:
            return (UNCONDITIONAL, CONDITIONAL)
        return (UNCONDITIONAL if self._repeats == 1 else CONDITIONAL,)

    def _first_chunk(self, score: Score, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not 0 < self.chunk < score.count:
            self._set(score, slice(None))
            return args, kwargs
        parts = [slice(start, start + self.chunk) for start in range(0, score.count, self.chunk)]
        self._rest = (args, kwargs, parts[1:])
        return self._chunk(score, args, kwargs, parts[0])

    def _chunk(self, score: Score, args: Any, kwargs: Any, part: slice) -> tuple[Any, Any]:
        """The rows of one chunk of a batch, with its gates set."""
        self._set(score, part)
        index = torch.arange(score.count, device=score.columns[0].device)[part]
        return branches.take(args, score.count, index), branches.take(kwargs, score.count, index)

    def _set(self, score: Score, part: slice) -> None:
        """Sets the gates of a part of the rows."""
        placed = score.regions
        if placed is not None and (self._shown is not score or placed.pictures is not None):
            placed.show(part)
        self._shown = score
        refreshed = self._refreshed(score, part) if self.cache is not None else None
        rows = slice(None) if score.rows.shared else part
        for bank, columns in zip(self.scores.banks, score.columns, strict=True):
            chosen: slice | Tensor = rows
            if refreshed is not None and bank is self.scores.banks[-1]:
                if not len(refreshed):
                    continue
                if not score.rows.shared:
                    chosen = torch.arange(score.count)[part][refreshed].to(columns.device)
            if bank is not None:
                bank.write(columns[self.step, chosen], score.program[chosen])
        if self.gating is not None:
            self._gate(score.program[rows])

    def _gate(self, program: Tensor) -> None:
        """Tells the learned gate the step, and which adapters it is for, by the program of each row."""
        assert self.gating is not None
        if self.gating.times is not self._times:
            self.gating.times, self.gating.levels = self._times, levels_of(self.scores.run.scheduler())
        self._freedom = self._freedom.to(program.device)
        self.gating.show(self.step, None if self._followed else self._freedom[program])

    def _refreshed(self, score: Score, part: slice) -> Tensor | None:
        """Which of the rows the cache computes anew; None for all."""
        assert self.cache is not None
        steps, marks = len(score.inside), score.rows.refresh
        count = len(range(score.count)[part])
        if marks is None:
            wanted = self.cache.plan.refresh(steps)[self.step].expand(count)
        else:
            wanted = marks[self.step, part]
        gates = score.inside[self.step]
        gates = gates.expand(count, -1) if score.rows.shared else gates[part]
        # Regions are shown for all rows of a call alike.
        together = score.regions is not None and score.regions.pictures is not None
        return self.cache.begin((score, part.start), wanted, gates, together)

    def _settle(self, module: nn.Module) -> None:
        """Installs or removes the feature cache, as the programs want it."""
        plan = self.programs[0].cache
        if any(program.cache != plan for program in self.programs):
            raise UsageError("programs of one batch have different cache plans; give all the same")
        if (self.cache.plan if self.cache else None) == plan:
            return
        self._leave_blocks()
        self.cache = FeatureCache(module, plan) if plan else None
        self.scores.divide(self.cache.order if self.cache else ())
        self._compile_all()

    def _compile_all(self) -> None:
        if self._options is None:
            return
        if self.cache is not None:
            self.cache.compile(self._options)
        else:
            self._plain = self.fn_ref.forward
            self.fn_ref.forward = torch.compile(self._plain, **self._options)

    def _leave_blocks(self) -> None:
        """Undoes what was done to the denoiser's blocks and its forward."""
        if self._plain is not None:
            self.fn_ref.forward, self._plain = self._plain, None
        if self.cache is not None:
            self.cache.leave()
            self.cache = None
