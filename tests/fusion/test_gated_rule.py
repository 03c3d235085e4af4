"""Laws of the rule of gated fusion: against a plain reference on whole outputs, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from gates import noisy
from predictions import relative
from torch import Tensor

from loracomp.fusion.gated import Form, GateWeights, rule
from loracomp.fusion.gated.form import features
from loracomp.fusion.gated.outputs import Stack

RANKS, WIDTH, TOKENS = (2, 5, 3), 24, 7
FORMS = {
    "P": Form.published("P"),
    "T": Form.published("T", global_rank=0),
    "ours": Form.ours(),
    "no base": Form.ours(base=False),
    "no cross": Form.ours(cross=False),
    "no lora": Form.ours(lora=False),
    "no time": Form.ours(time=0),
    "no competition": Form.ours(competition=False),
    "no solo": Form.ours(solo=False),
    "bias alone": Form(base=False, lora=False, cross=False),
}


def layer_norm(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()


def reference(
    form: Form, values: Tensor, level: float, y: Tensor, outputs: Sequence[Tensor], free: Sequence[float]
) -> Tensor:
    """The published formula and our terms, spelled out on whole outputs in float64."""
    row = dict(zip(form.rows, values.double(), strict=True))
    phases = features(level, form.time).double()
    shift = sum(phases[k] * row[f"shift{k}"] for k in range(form.time))
    scale = 1 + sum(phases[k] * row[f"scale{k}"] for k in range(form.time))
    gated = [o * (f != 0) for o, f in zip(outputs, free, strict=True)]
    energies = [o.square().mean(-1, keepdim=True) for o in gated]
    total = torch.zeros_like(y)
    for i, own in enumerate(outputs):
        rest = sum((o for j, o in enumerate(gated) if j != i), torch.zeros_like(y))
        share = (sum(energies) - energies[i]) / (sum(energies) + 1e-300)
        z = torch.zeros_like(y)
        if form.base or form.cross:
            base = layer_norm(y) * row["base_weight"] + row["base_bias"]
        if form.lora or form.cross:
            inside = layer_norm(own) * row["lora_weight"] + row["lora_bias"]
        z = z + (row["p"] * base if form.base else 0) + (row["q"] * inside if form.lora else 0)
        z = z + (row["m"] * base * inside if form.cross else 0)
        if form.competition:
            cosine = torch.nn.functional.cosine_similarity(gated[i], rest, dim=-1)[..., None]
            z = z + row["share"] * share + row["cosine"] * cosine
        gate = row["v"] * torch.sigmoid(scale * z + row["b"] + shift)
        factor = 1 + share / (share + 0.05) * (2 * gate - 1) if form.solo else gate
        total = total + (1 + free[i] * (factor - 1)) * own
    return total


def stacked(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, int]], list[Tensor]]:
    """y, hidden values, up factors, spans and outputs of three adapters, in float64."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    hidden = torch.randn(2, TOKENS, sum(RANKS), generator=generator, dtype=torch.float64)
    up = torch.randn(WIDTH, sum(RANKS), generator=generator, dtype=torch.float64)
    ends = torch.tensor(RANKS).cumsum(0).tolist()
    spans = [(end - rank, end) for rank, end in zip(RANKS, ends, strict=True)]
    return y, hidden, up, spans, [hidden[..., a:b] @ up[:, a:b].T for a, b in spans]


def evaluated(
    form: Form, values: Tensor, level: float, y: Tensor, hidden: Tensor, up: Tensor,
    spans: list[tuple[int, int]], free: Sequence[float],
) -> Tensor:  # fmt: skip
    owner = torch.zeros(hidden.shape[-1], len(spans), dtype=torch.float64)
    for i, (first, end) in enumerate(spans):
        owner[first:end, i] = 1
    rows = torch.tensor(free, dtype=torch.float64)[None, None]
    down = torch.randn(hidden.shape[-1], 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    stack = Stack.of(form, up, down, spans, owner)
    hidden, all_rows = stack.extended(form, hidden, rows)
    phases = features(level, form.time).double() if form.time else None
    vectors = rule.Vectors.of(form, values.double(), phases)
    return rule.update(form, vectors, y, hidden, stack, all_rows)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("free", [(1.0, 1.0, 1.0), (0.7, 0.0, 1.0)])
def test_rank_space_equals_whole_outputs(name: str, free: tuple[float, ...]) -> None:
    form, (y, hidden, up, spans, outputs) = FORMS[name], stacked()
    values = noisy(form, WIDTH)
    ours = evaluated(form, values, 0.3, y, hidden, up, spans, free)
    assert relative(ours, reference(form, values, 0.3, y, outputs, free)) < 1e-6
    assert relative(ours, sum(outputs, torch.zeros_like(y))) > 1e-2


def test_the_gate_does_not_know_the_order_of_adapters() -> None:
    form, (y, hidden, up, spans, _) = Form.ours(), stacked()
    values, order = noisy(form, WIDTH), [2, 0, 1]
    columns = torch.cat([torch.arange(*spans[i]) for i in order])
    ends = torch.tensor([RANKS[i] for i in order]).cumsum(0).tolist()
    moved = [(end - RANKS[i], end) for i, end in zip(order, ends, strict=True)]
    first = evaluated(form, values, 0.5, y, hidden, up, spans, (1.0, 1.0, 1.0))
    second = evaluated(form, values, 0.5, y, hidden[..., columns], up[:, columns], moved, (1.0, 1.0, 1.0))
    assert relative(first, second) < 1e-12


def test_one_adapter_is_itself_and_silence_counts_as_absence() -> None:
    form, (y, hidden, up, spans, outputs) = Form.ours(), stacked()
    values = noisy(form, WIDTH)
    alone = evaluated(form, values, 0.5, y, hidden[..., :2], up[:, :2], [(0, 2)], (1.0,))
    assert relative(alone, outputs[0]) < 1e-9
    silent = hidden.clone()
    silent[..., 2:] = 0
    assert relative(evaluated(form, values, 0.5, y, silent, up, spans, (1.0,) * 3), outputs[0]) < 1e-9
    published = FORMS["P"]
    shrunk = evaluated(
        published, noisy(published, WIDTH), 0.5, y, hidden[..., :2], up[:, :2], [(0, 2)], (1.0,)
    )
    assert relative(shrunk, outputs[0]) > 0.05


def test_no_output_of_all_adapters_is_formed() -> None:
    """The largest tensor that is made has one adapter's output, however many adapters there are."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                Largest.size = max(Largest.size, result.numel())
            return result

    form, width, tokens, count, rank = Form.ours(), 512, 256, 6, 4
    hidden, up = torch.randn(1, tokens, count * rank).double(), torch.randn(width, count * rank).double()
    y, spans = torch.randn(1, tokens, width).double(), [(i * rank, (i + 1) * rank) for i in range(count)]
    with Largest():
        evaluated(form, noisy(form, width), 0.5, y, hidden, up, spans, (1.0,) * count)
    assert Largest.size == tokens * width


def test_the_global_adapter_is_the_best_approximation_of_the_sum() -> None:
    form = Form.published("T")
    generator = torch.Generator().manual_seed(4)
    scales = torch.tensor([5.0, 3.0, *[0.3] * (sum(RANKS) - 2)], dtype=torch.float64)
    up = torch.randn(WIDTH, sum(RANKS), generator=generator, dtype=torch.float64) * scales
    down = torch.randn(sum(RANKS), 30, generator=generator, dtype=torch.float64)
    x = torch.randn(1, TOKENS, 30, generator=generator, dtype=torch.float64)
    owner = torch.zeros(sum(RANKS), 3, dtype=torch.float64)
    spans = [(0, 2), (2, 7), (7, 10)]
    for i, (first, end) in enumerate(spans):
        owner[first:end, i] = 1
    stack = Stack.of(form, up, down, spans, owner)
    hidden, free = stack.extended(form, x @ down.T, torch.ones(1, 1, 3, dtype=torch.float64))
    first, end = stack.spans[-1]
    u, s, v = torch.linalg.svd(up @ down)
    best = u[:, :2] * s[:2] @ v[:2]
    assert relative(hidden[..., first:end] @ stack.up[:, first:end].T, x @ best.T) < 1e-6
    assert free is not None
    assert free.shape[-1] == 4
    silent, _ = stack.extended(form, x @ down.T, torch.zeros(1, 1, 3, dtype=torch.float64))
    assert float(silent[..., first:end].abs().max()) == 0


def test_joined_statistics_are_those_of_the_fused_layer() -> None:
    """Split projections with joint statistics against one layer that holds all their channels."""
    from loracomp.fusion.gated.live import Gating
    from loracomp.fusion.stacked import StackedUpdate
    from loracomp.lowrank import LowRank

    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    form, width, inputs = Form.published("P", joint=True), 6, 5
    split, fused = torch.nn.ModuleDict(), torch.nn.Linear(inputs, 3 * width, dtype=torch.float64)
    names = ("to_q", "to_k", "to_v")
    for i, name in enumerate(names):
        split[name] = torch.nn.Linear(inputs, width, dtype=torch.float64)
        split[name].load_state_dict(
            {key: value[i * width : (i + 1) * width] for key, value in fused.state_dict().items()}
        )
    # The second adapter leaves to_v alone, and no adapter of the fused layer knows of parts.
    parts = {name: [LowRank(normal(2, inputs), normal(width, 2)) for _ in range(2)] for name in names}
    updates: dict[str, StackedUpdate] = {}
    ups = [torch.zeros(3 * width, 6).double() for _ in range(2)]
    downs: list[list[Tensor]] = [[], []]
    for i, name in enumerate(names):
        layers = [(n, parts[name][n]) for n in range(2) if (name, n) != ("to_v", 1)]
        updates[f"unet.a.{name}"] = StackedUpdate(layers, split[name])
        for n, layer in layers:
            ups[n][i * width : (i + 1) * width, 2 * i : 2 * i + 2] = layer.up
        for n in range(2):
            downs[n].append(parts[name][n].down)
    whole = [(n, LowRank(torch.cat(downs[n]), ups[n])) for n in range(2)]
    one = StackedUpdate(whole, fused)
    values = noisy(form, 3 * width)
    rows = {f"unet.a.{name}": part for name, part in zip(names, values.split(width, 1), strict=True)}
    holder = torch.nn.ModuleDict({"a": split})
    first = Gating(GateWeights(form, "x", rows), updates, 2, holder)
    single = GateWeights(replace(form, joint=False), "x", {"unet.b": values})
    second = Gating(single, {"unet.b": one}, 2, torch.nn.ModuleDict({"b": fused}))
    for update in (*updates.values(), one):
        update.gate = update.scale.double()[None]
    x = normal(2, 4, inputs)
    free = torch.ones(1, 2, dtype=torch.float64)
    first.show(0, free)
    second.show(0, free)
    with torch.no_grad():
        ours = torch.cat([split[name](x) for name in names], dim=-1)
        assert relative(ours, fused(x)) < 1e-6
        for gating in first.layers.values():
            gating.joint = None
        assert relative(torch.cat([split[name](x) for name in names], dim=-1), fused(x)) > 1e-3
