"""Features reused between steps, with regard to the gates that act inside what is skipped.

In a UNet the inner blocks return what they returned at the last refresh (DeepCache, Ma et al. 2023,
arXiv:2312.00858, §3.3). In a transformer the inner blocks pass their inputs on, and the last of them adds
what all of them had added at the last refresh (block residuals, as in FirstBlockCache). A row of the batch is
refreshed where the program's table or the plan says so, where nothing is stored yet, and where a gate inside
the skipped blocks has moved by more than the plan's tolerance: a cache that looks at the first block alone
never sees that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from loracomp.errors import UsageError
from loracomp.fusion import seat
from loracomp.fusion.branches import take
from loracomp.fusion.plan import CachePlan

UNET = ("down_blocks", "mid_block", "up_blocks")
STACKS = ("transformer_blocks", "single_transformer_blocks")
Compute = Callable[..., Any]
Chain = list[tuple[str, nn.Module]]


def chain(denoiser: nn.Module) -> Chain:
    """The blocks of a denoiser in the order in which they run, with their paths."""
    found: Chain = []
    for name in UNET if hasattr(denoiser, "down_blocks") else STACKS:
        part = getattr(denoiser, name, None)
        if isinstance(part, nn.ModuleList):
            found += [(f"{name}.{number}", block) for number, block in enumerate(part)]
        elif part is not None:
            found.append((name, part))
    return found


def inner(blocks: Chain, outer: int) -> Chain:
    """The blocks but the ``outer`` first and last ones; raises :class:`UsageError` where none is left."""
    if len(blocks) <= 2 * outer:
        raise UsageError(f"a cache that keeps {outer} outer blocks skips none of {len(blocks)}; lower outer")
    return blocks[outer : len(blocks) - outer]


@dataclass
class Slot:
    """What is kept for one kind of call.

    Attributes:
        gates: Gates inside the skipped blocks at each row's last refresh, shape (rows, columns).
        features: Outputs by block (UNet), or the sum of residuals by stream (transformer).
    """

    gates: Tensor
    features: dict[str, Any]


class BlockHook(ModelHook):
    """Hands the calls of one block to the cache."""

    def __init__(self, cache: FeatureCache, path: str) -> None:
        super().__init__()
        self.cache = cache
        self.path = path
        self.compute: Compute | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Computes the block, or part of its rows, or nothing."""
        return self.cache.visit(self.path, self.compute or self.fn_ref.original_forward, args, kwargs)


class FeatureCache:
    """Hooks on the inner blocks of a denoiser.

    Args:
        denoiser: A UNet or a transformer of diffusers.
        plan: What to skip, and when to refresh.

    Attributes:
        computed: How often each inner block was computed, for some rows at least.
        skipped: How often it was not.
    """

    def __init__(self, denoiser: nn.Module, plan: CachePlan) -> None:
        self.plan = plan
        self.blocks = chain(denoiser)
        self.inside = dict(inner(self.blocks, plan.outer))
        self.order = list(self.inside)
        self.residual = not hasattr(denoiser, "down_blocks")
        self.computed: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._slots: dict[Any, Slot] = {}
        self._slot = Slot(torch.empty(0, 0), {})
        self._rows: Tensor | None = None
        self._count = 0
        self._fresh: dict[str, Tensor] = {}
        self._compiled: list[nn.Module] = []
        self.hooks = {path: BlockHook(self, path) for path in self.inside}
        for path, block in self.inside.items():
            seat.install(block, self.hooks[path])

    def leave(self) -> None:
        """Takes the hooks off and forgets all features."""
        self._slots.clear()
        for block in self._compiled:
            block._compiled_call_impl = None
        for path, block in self.inside.items():
            seat.remove(block, self.hooks[path])

    def compile(self, options: Mapping[str, Any]) -> None:
        """Compiles block by block, since what runs differs from step to step."""
        for path, block in self.blocks:
            if path in self.hooks:
                self.hooks[path].compute = torch.compile(self.hooks[path].fn_ref.original_forward, **options)
            else:
                block.compile(**options)
                self._compiled.append(block)

    def forget(self) -> None:
        """A new run begins."""
        self._slots.clear()

    def begin(self, key: Any, wanted: Tensor, gates: Tensor, together: bool = False) -> Tensor | None:
        """Decides which rows of a call are refreshed.

        Args:
            key: Calls with the same key continue each other.
            wanted: Rows that table or plan want refreshed, shape (rows,), bool.
            gates: Gates inside the skipped blocks now, shape (rows, columns), on the CPU.
            together: Refresh all rows where any is refreshed.

        Returns:
            Indices of the rows that are refreshed; None for all of them.
        """
        self._count = len(wanted)
        slot = self._slots.get(key)
        if slot is None or slot.gates.shape != gates.shape:
            self._slot = self._slots[key] = Slot(gates.clone(), {})
            self._rows = None
            return None
        self._slot = slot
        if gates.shape[1]:
            wanted = wanted | ((gates - slot.gates).abs().amax(1) > self.plan.tolerance)
        if together and bool(wanted.any()):
            wanted = torch.ones_like(wanted)
        slot.gates[wanted] = gates[wanted]
        self._rows = None if bool(wanted.all()) else wanted.nonzero()[:, 0]
        return self._rows

    def visit(self, path: str, compute: Compute, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a block returns in this call."""
        if self._rows is not None and not len(self._rows):
            self.skipped[path] += 1
        else:
            self.computed[path] += 1
        if self.residual:
            return self._add_residual(path, compute, args, kwargs)
        return self._reuse_output(path, compute, args, kwargs)

    def _part(self, compute: Compute, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        """The block computed for the rows that are refreshed, and these rows on its device."""
        assert self._rows is not None
        device = next(v.device for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        rows = self._rows.to(device)
        return compute(*take(args, self._count, rows), **take(kwargs, self._count, rows)), rows

    # UNets: every inner block returns its stored output.

    def _reuse_output(
        self, path: str, compute: Compute, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        features = self._slot.features
        if self._rows is None:
            features[path] = compute(*args, **kwargs)
        elif len(self._rows):
            part, rows = self._part(compute, args, kwargs)
            features[path] = _written(features[path], part, rows)
        stored = features[path]
        # The model may write into the last one (FreeU does), which is what outer blocks see.
        return stored.clone() if path == self.order[-1] and isinstance(stored, Tensor) else stored

    # Transformers: inner blocks pass on, and the last one adds the sum of their residuals.

    def _add_residual(
        self, path: str, compute: Compute, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        before = _streams(args, kwargs)
        if path == self.order[0]:
            self._fresh = {}
        after, rows = dict(before), None
        if self._rows is None:
            after = _outputs(compute(*args, **kwargs))
            self._collect(before, after)
        elif len(self._rows):
            result, rows = self._part(compute, args, kwargs)
            part = _outputs(result)
            self._collect({name: value[rows] for name, value in before.items()}, part)
            after = {name: value.index_copy(0, rows, part[name]) for name, value in before.items()}
        if path == self.order[-1]:
            after = self._closed(after, rows)
        return (
            (after["encoder_hidden_states"], after["hidden_states"])
            if len(after) > 1
            else after["hidden_states"]
        )

    def _collect(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        for name, value in after.items():
            gained = value - before[name]
            self._fresh[name] = self._fresh[name] + gained if name in self._fresh else gained

    def _closed(self, after: dict[str, Tensor], rows: Tensor | None) -> dict[str, Tensor]:
        """The streams behind the last inner block; keeps what was gained anew."""
        stored = self._slot.features
        if self._rows is None:
            stored.update(self._fresh)
            return after
        added = {name: value + stored[name] for name, value in after.items()}
        if rows is None:
            return added
        for name, gained in self._fresh.items():
            stored[name] = stored[name].index_copy(0, rows, gained)
        return {name: value.index_copy(0, rows, after[name][rows]) for name, value in added.items()}


def _streams(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Image and text states that a transformer's block is given."""
    given = dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)) | kwargs
    names = ("hidden_states", "encoder_hidden_states")
    return {name: given[name] for name in names if isinstance(given.get(name), Tensor)}


def _outputs(result: Any) -> dict[str, Tensor]:
    """Image and text states that it returns: (text, image), or image alone."""
    if isinstance(result, Tensor):
        return {"hidden_states": result}
    return {"hidden_states": result[1], "encoder_hidden_states": result[0]}


def _written(stored: Any, part: Any, rows: Tensor) -> Any:
    """Stored outputs with some rows replaced, in new tensors: the model may hold the old ones."""
    if isinstance(stored, Tensor):
        return stored.index_copy(0, rows, part)
    return type(stored)(_written(old, new, rows) for old, new in zip(stored, part, strict=True))
