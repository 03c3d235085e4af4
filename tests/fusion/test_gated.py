"""Laws of gated fusion: the rule against a plain reference, and the engine against the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import KINDS, layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import BaseMismatchError, FormatError, ResourceError, UsageError
from loracomp.fusion import METHODS, Program
from loracomp.fusion.gated import Form, GateWeights, rule
from loracomp.fusion.gated.form import features
from loracomp.fusion.gated.outputs import Stack
from loracomp.pipeline import attach, base_of, denoiser_of, detach

SUFFIXES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "proj_in")
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


def adapters_for(pipe: Any, count: int = 3) -> list[Adapter]:
    """Adapters of different ranks and scales, some of which leave layers alone."""
    shapes = layer_table(pipe)
    return [
        random_adapter(shapes, SUFFIXES[n:], rank=2 + n, alpha=float(1 + n), seed=n, name=f"a{n}")
        for n in range(count)
    ]


def relative(value: Tensor, wanted: Tensor) -> float:
    return float((value - wanted).norm() / wanted.norm())


def noisy(form: Form, width: int, seed: int = 0) -> Tensor:
    """Vectors of a gate that is far from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    return form.initial(width, generator) + 0.4 * torch.randn(len(form.rows), width, generator=generator)


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


def saved(pipe: Any, form: Form, path: Path, *, start: bool = False, seed: int = 0) -> str:
    """A gate for all layers of a pipeline's denoiser in a file."""
    prefix = denoiser_of(pipe)[0] + "."
    widths = {p: shape[0] for p, shape in layer_table(pipe).items() if p.startswith(prefix)}
    layers = {
        p: form.initial(width) if start else noisy(form, width, seed + i)
        for i, (p, width) in enumerate(widths.items())
    }
    GateWeights(form, base_of(pipe), layers).save(path)
    return str(path)


def gated(path: str, count: int = 3, **options: Any) -> Program:
    return Program("gated", (1.0,) * count, {"gate": path, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_merge_and_no_amount_is_merge(kind: str, tmp_path: Path) -> None:
    pipe = tiny_pipeline(kind)
    adapters = adapters_for(pipe)
    with attach(pipe, adapters, "merge"):
        merged = run(pipe)
    start = saved(pipe, Form.ours(), tmp_path / "start", start=True)
    far = saved(pipe, Form.ours(), tmp_path / "far")
    with attach(pipe, adapters, gated(start)):
        assert relative(run(pipe), merged) < 1e-5
    with attach(pipe, adapters, gated(far)) as attachment:
        strong = run(pipe)
        attachment.set_program(gated(far, amount=0.0))
        assert relative(run(pipe), merged) < 1e-5
        attachment.set_program("merge")
        assert relative(run(pipe), merged) < 1e-6
    assert relative(strong, merged) > 1e-3
    assert not any(hasattr(module, "gating") for module in denoiser_of(pipe)[1].modules())


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_and_accelerators_are_not_gated(kind: str, tmp_path: Path) -> None:
    pipe = tiny_pipeline(kind)
    adapters, path = adapters_for(pipe), saved(pipe, Form.ours(), tmp_path / "gate")
    with attach(pipe, adapters[:1], "merge", [0.9]):
        alone = run(pipe)
    with attach(pipe, adapters, replace(gated(path), weights=(0.9, 0.0, 0.0))):
        assert relative(run(pipe), alone) < 1e-5
    with attach(pipe, adapters[:2], "merge"):
        two = run(pipe)
    with attach(pipe, adapters[:2], replace(gated(path, 2), always=(0,))):
        assert torch.equal(run(pipe), two)
    with attach(pipe, adapters, replace(gated(path), always=(0,))):
        assert relative(run(pipe), two) > 1e-4


def test_a_batch_of_methods_equals_single_images(tmp_path: Path) -> None:
    pipe = tiny_pipeline("sd15")
    adapters, path = adapters_for(pipe), saved(pipe, Form.ours(), tmp_path / "gate")
    programs = [gated(path), Program("merge", (1.0, 0.5, 1.0)), Program("composite", (1.0, 1.0, 1.0))]
    prompts = ["an apple"] * 3

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(n) for n in range(3)]

    def drawn(count: slice, program: Any) -> Tensor:
        with attach(pipe, adapters, program), torch.no_grad():
            found: Tensor = pipe(
                prompts[count], generator=generators()[count], output_type="latent", num_inference_steps=3,
                guidance_scale=3.0, height=32, width=32,
            ).images  # fmt: skip
        return found

    together = drawn(slice(3), programs)
    for place, program in enumerate(programs):
        assert relative(together[place : place + 1], drawn(slice(place, place + 1), program)) < 1e-5


def test_other_adapters_in_the_same_layers_are_gated_anew(tmp_path: Path) -> None:
    pipe = tiny_pipeline("sd15")
    adapters, path = adapters_for(pipe), saved(pipe, Form.ours(), tmp_path / "gate")
    with attach(pipe, adapters[:2], gated(path, 2)):
        wanted = run(pipe)
    from loracomp.pipeline import Capacity

    with attach(pipe, adapters, gated(path), capacity=Capacity(16)) as attachment:
        run(pipe)
        attachment.swap(adapters[:2], gated(path, 2))
        assert relative(run(pipe), wanted) < 1e-5


def test_missing_damaged_and_foreign_gates_are_refused(tmp_path: Path) -> None:
    pipe, other = tiny_pipeline("sd15"), tiny_pipeline("flux")
    adapters = adapters_for(pipe)
    with pytest.raises(ResourceError, match="train one"):
        attach(pipe, adapters, gated(str(tmp_path / "none")))
    broken = tmp_path / "broken"
    broken.write_bytes(b"no gate")
    with pytest.raises(FormatError, match="not a gate"):
        attach(pipe, adapters, gated(str(broken)))
    with pytest.raises(BaseMismatchError, match="the gate"):
        attach(pipe, adapters, gated(saved(other, Form.ours(), tmp_path / "flux")))
    detach(pipe)
    with pytest.raises(UsageError, match="outside"):
        METHODS["gated"](torch.ones(2), 4, amount=3)


def test_a_gate_comes_back_as_it_was_written(tmp_path: Path) -> None:
    form = Form.ours(time=2, cross=False)
    gate = GateWeights(form, "glyph", {"unet.a": noisy(form, 5).half().float()}, {"subjects": ["x"]})
    gate.save(tmp_path / "gate")
    back = GateWeights.load(tmp_path / "gate")
    assert (back.form, back.base, back.record) == (form, "glyph", {"subjects": ["x"]})
    assert torch.equal(back.layers["unet.a"], gate.layers["unet.a"])
    assert back.digest == gate.digest


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


@pytest.mark.parametrize("kind", ["sd15", "flux"])
@pytest.mark.parametrize("form", [Form.published("T"), Form.ours(global_rank=2, joint=True)])
def test_the_global_adapter_on_the_engine(kind: str, form: Form, tmp_path: Path) -> None:
    pipe = tiny_pipeline(kind)
    adapters, path = adapters_for(pipe), saved(pipe, form, tmp_path / "gate")
    with attach(pipe, adapters, gated(path)):
        with_it = run(pipe)
    rows = GateWeights.load(tmp_path / "gate")
    GateWeights(replace(form, global_rank=0), rows.base, rows.layers).save(tmp_path / "less")
    with attach(pipe, adapters, gated(str(tmp_path / "less"))):
        assert relative(run(pipe), with_it) > 1e-4
    with attach(pipe, adapters, replace(gated(path), weights=(0.0, 0.0, 0.0))):
        silent = run(pipe)
    assert relative(silent, run(pipe)) < 1e-6
    if form.solo:
        with attach(pipe, adapters[:1], "merge"):
            alone = run(pipe)
        with attach(pipe, adapters, replace(gated(path), weights=(1.0, 0.0, 0.0))):
            assert relative(run(pipe), alone) < 1e-5


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
