"""The one hook on the denoiser that makes a gate program happen.

Before each denoiser call it finds the step, copies that step's gates into the stacked layers and, for
programs with several branches, repeats the batch once per branch; after the call it mixes the
branches. It works through diffusers' ``ModelHook``, so schedulers and pipelines stay untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from loracomp.fusion.program import GateTable, Program
from loracomp.fusion.stacked import StackedUpdate

NAME = "loracomp"
UNBATCHED = {"img_ids", "txt_ids", "image_rotary_emb"}


class GateBank:
    """The gates of all stacked layers of a model in one tensor, so that a step is one copy.

    Args:
        updates: The stacked layers, whose ``gate`` becomes a view of the bank.
    """

    def __init__(self, updates: Sequence[StackedUpdate]) -> None:
        self.updates = tuple(updates)
        self.owner = torch.cat([update.owner for update in updates])
        self.scale = torch.cat([update.scale for update in updates])
        self.rows = torch.empty(0, 0)

    def write(self, gates: Tensor, repeats: int, dtype: torch.dtype) -> None:
        """Sets all gates.

        Args:
            gates: Strengths, shape (branches, adapters).
            repeats: Batch rows per branch; ignored for one branch, whose row serves all.
            dtype: Dtype of the denoiser's activations.
        """
        count = 1 if len(gates) == 1 else len(gates) * repeats
        self._place(count, gates.device, dtype)
        values = gates.index_select(1, self.owner) * self.scale
        self.rows.copy_(values.repeat_interleave(count // len(gates), dim=0))

    def _place(self, count: int, device: torch.device, dtype: torch.dtype) -> None:
        rows = self.rows
        if len(rows) == count and rows.device == device and rows.dtype == dtype:
            return
        self.owner, self.scale = self.owner.to(device), self.scale.to(device)
        self.rows = torch.empty(count, len(self.owner), device=device, dtype=dtype)
        for update, view in zip(
            self.updates, self.rows.split([u.rank for u in self.updates], 1), strict=True
        ):
            update.gate = view


class GateHook(ModelHook):
    """Runs a program on a denoiser.

    Args:
        updates: The denoiser's stacked layers; may be empty (adapters of text encoders only).
        program: The gate program; may be replaced between or during runs.
        scheduler: Returns the scheduler that the pipeline uses now.
    """

    def __init__(
        self, updates: Sequence[StackedUpdate], program: Program, scheduler: Callable[[], Any]
    ) -> None:
        super().__init__()
        self.bank = GateBank(updates) if updates else None
        self.scheduler = scheduler
        self.program = program
        self.calls = 0
        self.attachment: Any = None
        self.forward_was_set = False
        self._run: Tensor | None = None
        self._table: GateTable | None = None
        self._mix = torch.ones(1)

    def set_program(self, program: Program) -> None:
        """Replaces the program; takes effect with the next denoiser call."""
        self.program, self._table = program, None

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Sets this step's gates and repeats the batch once per branch."""
        sample: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        table = self._current_table(sample.device)
        step = self._step(timestep)
        gates, self._mix = table.gates.index_select(0, step)[0], table.mix.index_select(0, step)[0]
        self.calls += 1
        if self.bank is not None:
            self.bank.write(gates, len(sample), sample.dtype)
        if table.branches == 1:
            return args, kwargs
        return _repeat(args, len(sample), table.branches), _repeat(kwargs, len(sample), table.branches)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Mixes the branches of the output into one prediction."""
        if len(self._mix) == 1:
            return output
        if isinstance(output, tuple):
            return (self._mixed(output[0]), *output[1:])
        return type(output)(**{key: self._mixed(value) for key, value in output.items()})

    def _mixed(self, prediction: Tensor) -> Tensor:
        branches = prediction.unflatten(0, (len(self._mix), -1))
        return torch.tensordot(self._mix.to(prediction.dtype), branches, dims=1)

    def _current_table(self, device: torch.device) -> GateTable:
        timesteps = self.scheduler().timesteps
        if self._table is None or self._run is not timesteps or self._table.gates.device != device:
            table = self.program.table(len(timesteps))
            self._table = GateTable(table.gates.to(device), table.mix.to(device))
            self._run = timesteps
        return self._table

    def _step(self, timestep: Tensor | float) -> Tensor:
        """Position in the run, shape (1,), without asking the device for a number where possible."""
        scheduler, device = self.scheduler(), self._table.gates.device if self._table else None
        index = getattr(scheduler, "step_index", None)
        if index is not None:
            return torch.tensor([min(index, len(scheduler.timesteps) - 1)], device=device)
        times = scheduler.timesteps.to(device, torch.float32)
        now = torch.as_tensor(timestep, dtype=torch.float32, device=device).flatten()[:1]
        # Some denoisers (FLUX) are called with t / 1000.
        gaps = torch.stack([(times - now).abs(), (times - 1000 * now).abs()])
        best = gaps.min(dim=1)
        return best.indices[best.values.argmin()].reshape(1)


def _repeat(value: Any, batch: int, times: int, name: str = "") -> Any:
    """The value with every tensor that has a row per sample repeated branch by branch."""
    if name in UNBATCHED:
        return value
    if isinstance(value, Tensor):
        batched = value.ndim > 0 and len(value) == batch
        return value.repeat(times, *[1] * (value.ndim - 1)) if batched else value
    if isinstance(value, dict):
        return {key: _repeat(item, batch, times, str(key)) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_repeat(item, batch, times) for item in value)
    return value


def install(denoiser: nn.Module, hook: GateHook) -> None:
    """Registers the hook on the denoiser."""
    hook.forward_was_set = "forward" in vars(denoiser)
    HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(hook, NAME)


def installed(denoiser: nn.Module) -> GateHook | None:
    """The denoiser's hook, if it has one."""
    registry = getattr(denoiser, "_diffusers_hook", None)
    return registry.get_hook(NAME) if registry is not None else None


def remove(denoiser: nn.Module, hook: GateHook) -> None:
    """Takes the hook off, and with the last hook the registry that diffusers made for it."""
    registry: Any = denoiser._diffusers_hook
    registry.remove_hook(NAME, recurse=False)
    if not registry.hooks:
        del denoiser._diffusers_hook
        if not hook.forward_was_set:
            del denoiser.forward
