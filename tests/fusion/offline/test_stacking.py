"""Stacks of adapters: the strength of every layer in a streamed file, and what rounding does to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dense_merges import deltas, dense, family, weighted
from tiny import random_adapter

from loracomp.bases import modules
from loracomp.formats import load, save
from loracomp.fusion.offline import carried_out, merge_files, plan

WEIGHTS = [1.0, -0.6, 0.4]
ENDINGS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "layers.3.self_attn.q_proj",
    "down_blocks.0.resnets.0.conv1",
)


@pytest.mark.parametrize("dialect", ["auto", "diffusers", "peft", "diffusers-old"])
def test_streamed_layers_of_any_ranks_have_their_strength(tmp_path: Path, dialect: str) -> None:
    """Ranks that are powers of two apart, which dialects with one alpha for all would scale by alphas."""
    table, chosen = dict(modules("sd15")), (ENDINGS[:2], ENDINGS[:1], (ENDINGS[0], ENDINGS[2]))
    adapters = [
        random_adapter(table, endings, 4, 6.0, seed=seed, base="sd15") for seed, endings in enumerate(chosen)
    ]
    files = [save(one, tmp_path / f"{seed}.safetensors") for seed, one in enumerate(adapters)]
    report = merge_files(files, tmp_path / "out.safetensors", WEIGHTS, "concat", dialect=dialect)
    merged = load(tmp_path / "out.safetensors")
    assert report.rank == 12 and min(row.rank for row in report.layers) == 4
    for path, layer in merged.layers.items():
        pairs = zip(WEIGHTS, adapters, strict=True)
        exact = sum(w * one.layers[path].delta(torch.float64) for w, one in pairs if path in one.layers)
        torch.testing.assert_close(layer.delta(torch.float64), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_rounding_of_a_stack_is_measured_from_any_type(dtype: torch.dtype) -> None:
    parents, weights = [one.to(dtype=dtype) for one in family()], [0.9, -0.6, 0.5]
    merged, report = carried_out(plan(parents, weights, "concat"))
    for row in report.layers:
        exact = weighted(deltas(parents, row.path), weights)
        gap = float((dense(merged, row.path) - exact).norm() / exact.norm())
        assert 0 < gap < 1e-6
        assert row.error == pytest.approx(gap, rel=0.3)
