"""Inside compiled graphs: a layer's updates folded into its weight, anew at each call.

    W' = W + (B_s ⊙ γ) A_s,   y = x W'ᵀ

is the same as y = x Wᵀ + ((x A_sᵀ) ⊙ γ) B_sᵀ wherever one gate holds for all samples and tokens. Its cost is
2 · d_out · d_in · C operations and one pass over the weight, however many tokens there are, against
2 · tokens · C · (d_in + d_out) and several passes over the activations; and it is one kernel a layer instead
of three or four. W' lives as long as the layer's product. The graph's own product with W is then without a
reader, and the compiler drops it.

W' is rounded once to the weight's dtype, like a weight that adapters are fused into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from loracomp.fusion.stacked import StackedUpdate


def foldable(module: nn.Module, update: StackedUpdate, x: Tensor, y: Tensor) -> bool:
    """Whether this call may be computed with a folded weight.

    It takes a compiled graph without gradients, an ordinary linear layer that nothing else has a hand in,
    one dtype throughout, and one gate for all of ``x``.
    """
    if not torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    if type(module) is not nn.Linear or "forward" in vars(module) or len(module._forward_hooks) > 1:
        return False
    weight = module.weight
    alike = weight.dtype == x.dtype == y.dtype == update.down.dtype and weight.device == x.device
    return alike and len(update.gate) == 1 and not update.gating and not _in_regions(update, x)


def _in_regions(update: StackedUpdate, x: Tensor) -> bool:
    return update.regions is not None and x.ndim == 3 and update.regions.get(x.shape[1]) is not None


def folded(module: nn.Linear, update: StackedUpdate, x: Tensor) -> Tensor:
    """The layer's output on ``x``, shape (…, d_in), with its updates: shape (…, d_out)."""
    weight = folded_weight(module.weight, update.up, update.gate, update.down)
    return F.linear(x, weight, module.bias)


def folded_weight(weight: Tensor, up: Tensor, gate: Tensor, down: Tensor) -> Tensor:
    """``weight`` + (``up`` ⊙ ``gate``) ``down``, summed in float32 and rounded once.

    Args:
        weight: Shape (d_out, d_in), contiguous.
        up: Shape (d_out, C), contiguous.
        gate: Shape (1, C).
        down: Shape (C, d_in), contiguous.
    """
    if weight.is_cuda and weight.dtype != torch.float64:
        from loracomp.fusion import kernels

        if kernels.AVAILABLE:
            return kernels.fold(weight, up, gate, down)
    return torch.addmm(weight, up * gate, down)
