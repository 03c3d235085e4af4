"""Kernels in Triton; where it is missing, :data:`AVAILABLE` is false and callers use plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from torch.library import triton_op, wrap_triton

    AVAILABLE = True
except ImportError:  # a build of torch for the CPU
    AVAILABLE = False

BLOCKS = (64, 128, 32, 4, 3)
"""Rows, columns and ranks of a block, warps, stages: the fastest of ``benchmarks.folding`` on an H200."""

if AVAILABLE:

    @triton.jit
    def _fold(
        weight, up, gate, down, out, rows, columns, rank,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        m = tl.program_id(0) * BM + tl.arange(0, BM)
        n = tl.program_id(1) * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        inside = (m < rows)[:, None] & (n < columns)[None, :]
        place = m[:, None].to(tl.int64) * columns + n[None, :]
        before = tl.load(weight + place, mask=inside, other=0.0)  # arrives while the products are made
        total = tl.zeros((BM, BN), tl.float32)
        for start in range(0, rank, BK):
            known = start + k < rank
            left = (m < rows)[:, None] & known[None, :]
            factor = tl.load(gate + start + k, mask=known, other=0.0).to(tl.float32)
            b = tl.load(up + m[:, None] * rank + start + k[None, :], mask=left, other=0.0)
            b = (b.to(tl.float32) * factor[None, :]).to(b.dtype)
            right = known[:, None] & (n < columns)[None, :]
            a = tl.load(down + (start + k)[:, None] * columns + n[None, :], mask=right, other=0.0)
            total = tl.dot(b, a, total, input_precision="ieee")
        total += before.to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)

    @triton_op("loracomp::fold", mutates_args={})
    def fold(weight: Tensor, up: Tensor, gate: Tensor, down: Tensor) -> Tensor:
        """:func:`loracomp.fusion.folded.folded_weight` in one kernel, which graphs can hold."""
        return launch(wrap_triton(_fold), weight, up, gate, down)

    def launch(
        kernel: Any, weight: Tensor, up: Tensor, gate: Tensor, down: Tensor, blocks: Sequence[int] = BLOCKS
    ) -> Tensor:
        """Runs the kernel; all tensors contiguous."""
        rows, columns = weight.shape
        rank = up.shape[1]
        out = torch.empty_like(weight)
        bm, bn, bk, warps, stages = blocks
        kernel[(triton.cdiv(rows, bm), triton.cdiv(columns, bn))](
            weight, up, gate, down, out, rows, columns, rank,
            BM=bm, BN=bn, BK=bk, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return out
