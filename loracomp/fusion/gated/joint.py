"""Statistics over several projections of one input, as if they were one layer.

AutoLoRA's released gate (arXiv:2508.02107) belongs to a transformer whose q, k and v (and, in single blocks,
the first feed-forward layer) are one fused matrix, so its layer norms run over all of their channels at once.
Where they are separate modules, each computes its own channels, and means and variances come from here: of
adapters' outputs from rank space, of the base's own output from the Gram matrix of the joined weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from loracomp.fusion.gated import outputs
from loracomp.fusion.gated.form import Form
from loracomp.fusion.stacked import StackedUpdate

_HEADS = {"to_q": "", "to_k": "", "to_v": "", "add_q_proj": "add", "add_k_proj": "add", "add_v_proj": "add"}


def groups(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths of layers that read one input, by a name for it; layers that stand alone are left out."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        parent, _, leaf = path.rpartition(".")
        if leaf in _HEADS:
            cross = parent.endswith("attn2") and leaf == "to_q"
            block = parent.removesuffix(".attn") if "single_transformer_blocks" in parent else parent
            found.setdefault(f"{block}/{'q' if cross else _HEADS[leaf]}", []).append(path)
        elif leaf == "proj_mlp":
            found.setdefault(f"{parent}/", []).append(path)
    return {name: rows for name, rows in found.items() if len(rows) > 1}


class Joint:
    """Layers with one input; computes what they share once per input.

    Args:
        form: The gate's form.
        modules: The layers.
        members: Those of them that adapters change, with the adapters.
    """

    def __init__(
        self,
        form: Form,
        modules: Sequence[nn.Linear],
        members: Sequence[tuple[StackedUpdate, outputs.Stack]],
    ) -> None:
        self.form, self.members = form, tuple(members)
        stacks = [stack for _, stack in members]
        self.grams = outputs.Grams(
            torch.block_diag(*(stack.grams.whole for stack in stacks)),
            torch.cat([stack.grams.sums for stack in stacks]),
            torch.cat([stack.grams.owner for stack in stacks]),
            sum(len(module.weight) for module in modules),
        )
        weight = torch.cat([module.weight.detach() for module in modules])
        exact = weight.to(self.grams.whole.dtype)
        bias = torch.cat([_bias(module) for module in modules]).to(exact)
        self.width = len(exact)
        self.mean, self.shift = exact.mean(0), bias.mean()
        self.second = exact.T @ exact / self.width
        self.cross, self.square = 2 * exact.T @ bias / self.width, bias.square().mean()
        self._input: Tensor | None = None

    def at(self, x: Tensor, free: Tensor | None) -> tuple[outputs.Numbers, tuple[Tensor, Tensor]]:
        """Numbers of the adapters' joined outputs, and the base's moments, for an input (…, tokens, d_in)."""
        if self._input is not x:
            hidden = []
            for update, stack in self.members:
                own, freedom = stack.extended(self.form, update.hidden(x.to(update.down.dtype)), free)
                hidden.append(own)
            self._numbers = outputs.numbers(torch.cat(hidden, dim=-1), self.grams, freedom)
            self._moments = self._base(x.to(self.second.dtype))
            self._input = x
        return self._numbers, self._moments

    def forget(self) -> None:
        """Lets go of the last input."""
        self._input = None

    def _base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x @ self.mean + self.shift)[..., None]
        second = ((x @ self.second) * x).sum(-1) + x @ self.cross + self.square
        variance = (second[..., None] - mean.square()).clamp_min(0)
        return mean, (variance + outputs.EPSILON).rsqrt()


def _bias(module: nn.Linear) -> Tensor:
    if module.bias is None:
        return module.weight.new_zeros(len(module.weight))
    return module.bias.detach()
