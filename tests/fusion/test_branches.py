"""Branch programs: predictions of several gate settings in one batch, mixed, whole or in chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from predictions import Predictions, relative
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import Program
from loracomp.fusion.branches import CONDITIONAL, UNCONDITIONAL, arrange, mixed, take
from loracomp.pipeline import attach, denoiser_of


def adapters(pipe: Any, count: int = 3) -> list[Adapter]:
    """Adapters of denoiser and text encoders."""
    shapes = layer_table(pipe)
    return [
        random_adapter(shapes, ("to_q", "to_v", "ff.net.2", "q_proj"), rank=2 + n, seed=n)
        for n in range(count)
    ]


class Batches:
    """Sizes of the batches that the denoiser computes."""

    def __init__(self, pipe: Any) -> None:
        self.sizes: list[int] = []
        model: Any = denoiser_of(pipe)[1]
        first = model.conv_in if hasattr(model, "conv_in") else model.proj_out
        self.handle = first.register_forward_hook(
            lambda module, inputs, output: self.sizes.append(len(inputs[0]))
        )


def first(pipe: Any, chosen: list[Adapter], program: Any, **options: Any) -> tuple[Tensor, list[int]]:
    """The first prediction that the pipeline gets, and the batches that it was computed in."""
    counter = Batches(pipe)
    with attach(pipe, chosen, program, **options), Predictions(pipe) as seen:
        run(pipe, num_inference_steps=1)
    counter.handle.remove()
    return seen[0], counter.sizes


def test_chunks_give_what_the_whole_gives(pipe: Any) -> None:
    chosen = adapters(pipe)
    whole, sizes = first(pipe, chosen, "composite")
    rows = sizes[0]
    assert sizes == [rows]
    for chunk in (1, 2, rows - 1, rows, 99):
        parts, sizes = first(pipe, chosen, "composite", chunk=chunk)
        assert sum(sizes) == rows
        assert max(sizes) == min(chunk, rows)
        assert relative(parts, whole) < 1e-5


def test_shares_weigh_the_predictions(pipe: Any) -> None:
    chosen = adapters(pipe)
    alone = [first(pipe, [adapter], "merge")[0] for adapter in chosen]
    shares = torch.tensor([0.5, 0.2, 0.3])
    ours = first(pipe, chosen, Program("composite", options={"shares": [5.0, 2.0, 3.0]}))[0]
    assert relative(ours, torch.tensordot(shares, torch.stack(alone), dims=1)) < 1e-5
    table = Program("composite", (1.0, 1.0), {"shares": [[1, 0], [1, 3]]}).table(4)
    assert table.mix.tolist() == [[1, 0], [1, 0], [0.25, 0.75], [0.25, 0.75]]
    for shares_given in ([1.0], [0.0, 0.0, 0.0], [[1.0, 1.0]]):
        with pytest.raises(UsageError, match="shares"):
            Program("composite", (1.0, 1.0, 1.0), {"shares": shares_given}).table(4)
    with pytest.raises(UsageError, match="each and base"):
        Program("composite", (1.0,), {"unconditional": "none"}).table(4)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3"])
def test_the_unconditional_half_may_be_computed_once(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    chosen = adapters(pipe)
    each, rows_each = first(pipe, chosen, "composite")
    once, rows_once = first(pipe, chosen, Program("composite", options={"unconditional": "base"}))
    assert (rows_each, rows_once) == ([6], [4])
    assert relative(once[:1], first(pipe, chosen, Program("merge", (0.0, 0.0, 0.0)))[0][:1]) < 1e-5
    assert relative(once[1:], each[1:]) < 1e-5
    assert relative(once[:1], each[:1]) > 1e-4


def test_shares_that_pick_one_branch_after_another_are_a_switch(pipe: Any) -> None:
    prefix = denoiser_of(pipe)[0] + "."
    chosen = [
        Adapter({p: v for p, v in a.layers.items() if p.startswith(prefix)}, "custom")
        for a in adapters(pipe, 2)
    ]
    with attach(pipe, chosen, Program("composite", options={"shares": [[1, 0], [0, 1]]})):
        picked = run(pipe)
    with attach(pipe, chosen, Program("switch", options={"period": 0.5})):
        assert relative(run(pipe), picked) < 1e-5


def test_rows_stand_branch_by_branch_in_the_order_of_the_batch() -> None:
    composite = Program("composite", (1.0, 2.0)).table(3)
    merge = Program("merge", (1.0, 2.0)).table(3)
    uniform = arrange([composite], 4, (UNCONDITIONAL, CONDITIONAL))
    assert uniform.sources.tolist() == [0, 1, 2, 3] * 2
    assert [row.branch for row in uniform.rows] == [0] * 4 + [1] * 4
    assert [row.half for row in uniform.rows[:4]] == [UNCONDITIONAL] * 2 + [CONDITIONAL] * 2
    ragged = arrange([composite, merge], 2, (CONDITIONAL,))
    assert [(row.source, row.branch) for row in ragged.rows] == [(0, 0), (1, 0), (0, 1)]
    shared = arrange([merge], 6, (UNCONDITIONAL, CONDITIONAL))
    assert shared.shared
    assert shared.single
    assert shared.gates.shape == (3, 1, 2)
    values = torch.randn(3, 5)
    torch.testing.assert_close(
        mixed(values, ragged.mixing()[0]), torch.stack([(values[0] + values[2]) / 2, values[1]])
    )
    halves = replace(merge, unconditional=replace(merge, gates=merge.gates * 0))
    apart = arrange([halves], 2, (UNCONDITIONAL, CONDITIONAL))
    assert apart.gates[0].tolist() == [[0.0, 0.0], [1.0, 2.0]]
    assert not apart.shared


def test_only_what_has_a_row_per_sample_is_taken() -> None:
    index = torch.tensor([0, 1, 0])
    arguments = {
        "sample": torch.arange(2),
        "timestep": torch.tensor(3),
        "img_ids": torch.zeros(2, 3),
        "nested": {"text_embeds": torch.arange(4).view(2, 2), "residuals": [torch.arange(2), None]},
    }
    taken = take(arguments, 2, index)
    assert taken["sample"].tolist() == [0, 1, 0]
    assert taken["timestep"].ndim == 0
    assert taken["img_ids"].shape == (2, 3)
    assert taken["nested"]["text_embeds"].tolist() == [[0, 1], [2, 3], [0, 1]]
    assert taken["nested"]["residuals"][0].tolist() == [0, 1, 0]
