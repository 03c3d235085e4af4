"""Features reused between steps: they skip what they say, and no gate inside goes unnoticed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from predictions import Predictions, relative
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import CachePlan, Curve, GateTable, Profile, Program
from loracomp.fusion.cache import chain, inner
from loracomp.pipeline import attach, denoiser_of

SUFFIXES = ("to_q", "to_v", "ff.net.2", "conv1", "to_out.0")
RARE = CachePlan(interval=99)


@pytest.fixture(params=["sd15", "sdxl", "sd3", "flux"])
def deep(request: pytest.FixtureRequest) -> Any:
    """A pipeline whose denoiser has blocks to skip between the outer ones."""
    pipe = tiny_pipeline(request.param)
    if request.param == "sd3":
        from diffusers import SD3Transformer2DModel

        torch.manual_seed(0)
        pipe.transformer = SD3Transformer2DModel.from_config(
            {**pipe.transformer.config, "num_layers": 4}
        ).eval()
    if request.param == "flux":
        from diffusers import FluxTransformer2DModel

        torch.manual_seed(0)
        sizes = {"num_layers": 2, "num_single_layers": 3}
        pipe.transformer = FluxTransformer2DModel.from_config({**pipe.transformer.config, **sizes}).eval()
    return pipe


def adapters(pipe: Any, count: int = 2, where: str = "all") -> list[Adapter]:
    """Adapters of the denoiser: of all its layers, or of those in or out of the blocks that a cache skips."""
    name, model = denoiser_of(pipe)
    skipped = tuple(f"{name}.{path}." for path, _ in inner(chain(model), 1))
    keep = {
        "all": lambda path: path.startswith(name),
        "inside": lambda path: path.startswith(skipped),
        "outside": lambda path: path.startswith(name) and not path.startswith(skipped),
    }[where]
    shapes = {path: shape for path, shape in layer_table(pipe).items() if keep(path)}
    return [random_adapter(shapes, SUFFIXES, rank=2 + n, seed=n, size=0.3) for n in range(count)]


class Calls:
    """How often each block of a denoiser runs its own layers."""

    def __init__(self, pipe: Any) -> None:
        self.blocks = chain(denoiser_of(pipe)[1])
        self.counts = dict.fromkeys([path for path, _ in self.blocks], 0)
        self.rows: dict[str, list[int]] = {path: [] for path, _ in self.blocks}
        self.handles = [self._watch(path, block) for path, block in self.blocks]

    def _watch(self, path: str, block: nn.Module) -> Any:
        layer = next(m for m in block.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))

        def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.counts[path] += 1
            self.rows[path].append(len(inputs[0]))

        return layer.register_forward_hook(count)

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def drawn(pipe: Any, chosen: list[Adapter], program: Program, steps: int = 4) -> Tensor:
    with attach(pipe, chosen, program):
        return run(pipe, num_inference_steps=steps)


def test_it_skips_what_the_plan_says(deep: Any) -> None:
    chosen = adapters(deep)
    plan = CachePlan(interval=3)
    with attach(deep, chosen, Program(cache=plan)) as attachment, Calls(deep) as calls:
        first = run(deep, num_inference_steps=7)
        cache = attachment.hook.cache
        assert cache is not None
        assert cache.inside
        for path, count in calls.counts.items():
            assert count == (3 if path in cache.inside else 7), path
        assert set(cache.computed.values()) == {3}
        assert set(cache.skipped.values()) == {4}
        assert torch.equal(run(deep, num_inference_steps=7), first)
    exact = drawn(deep, chosen, Program(), 7)
    assert 1e-6 < relative(first, exact) < 0.9


def test_refreshing_in_every_step_is_no_cache(deep: Any) -> None:
    chosen = adapters(deep)
    cached = drawn(deep, chosen, Program("composite", cache=CachePlan(interval=1)))
    assert relative(cached, drawn(deep, chosen, Program("composite"))) < 1e-6


def test_the_plan_may_name_its_steps(deep: Any) -> None:
    with attach(deep, adapters(deep), Program(cache=CachePlan(steps=(2, 3)))), Calls(deep) as calls:
        run(deep, num_inference_steps=6)
    assert sorted(set(calls.counts.values())) == [3, 6]


LATE = Profile(Curve(((0, 0), (2, 1)), "step"))
"""Silent in the first two steps."""


def test_a_gate_that_changes_inside_is_not_missed(deep: Any) -> None:
    chosen = adapters(deep, 1, "inside")
    silent = drawn(deep, chosen, Program("merge", (0.0,), cache=RARE))
    program = Program(profiles=(LATE,), cache=RARE)
    with attach(deep, chosen, program) as attachment:
        noticed = run(deep)
        assert attachment.hook.cache is not None
        assert set(attachment.hook.cache.computed.values()) == {2}
    assert relative(noticed, silent) > 1e-5
    # A cache that looks at outer blocks alone has exactly no difference here.
    blind = replace(program, cache=replace(RARE, tolerance=float("inf")))
    assert torch.equal(drawn(deep, chosen, blind), silent)
    within = replace(program, cache=replace(RARE, tolerance=1.5))
    assert torch.equal(drawn(deep, chosen, within), silent)


def test_a_gate_that_changes_outside_costs_nothing(deep: Any) -> None:
    chosen = adapters(deep, 1, "outside")
    with attach(deep, chosen, Program(profiles=(LATE,), cache=RARE)) as attachment:
        changed = run(deep)
        assert attachment.hook.cache is not None
        assert set(attachment.hook.cache.computed.values()) == {1}
    assert relative(changed, drawn(deep, chosen, Program("merge", (0.0,), cache=RARE))) > 1e-6


class Replay:
    """The denoiser's calls of a run, repeated under other programs with the inputs unchanged."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.calls = pipe, []
        model = denoiser_of(pipe)[1]
        handle = model.register_forward_pre_hook(self._note, with_kwargs=True)
        run(pipe)
        handle.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args, kwargs))

    def __call__(self, chosen: list[Adapter], program: Program, **options: Any) -> list[Tensor]:
        scheduler, model = self.pipe.scheduler, denoiser_of(self.pipe)[1]
        found = []
        with attach(self.pipe, chosen, program, **options), torch.no_grad():
            for step, (args, kwargs) in enumerate(self.calls):
                if hasattr(scheduler, "_step_index"):
                    scheduler._step_index = step
                found.append(model(*args, **kwargs)[0])
        return found


@pytest.mark.parametrize("chunk", [0, 1])
def test_every_branch_is_refreshed_on_its_own(deep: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, replay = adapters(deep), Replay(deep)
    marks = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=torch.bool)
    alone = [
        replay([adapter], Program(cache=CachePlan(steps=tuple(marks[:, number].nonzero()[:, 0].tolist()))))
        for number, adapter in enumerate(chosen)
    ]
    plain = Program.table

    def table(program: Program, steps: int, sigmas: Tensor | None = None) -> GateTable:
        found = plain(program, steps, sigmas)
        return replace(found, refresh=marks) if steps == len(marks) else found

    monkeypatch.setattr(Program, "table", table)
    with Calls(deep) as calls:
        together = replay(chosen, Program("composite", cache=RARE), chunk=chunk)
    for step, prediction in enumerate(together):
        assert relative(prediction, (alone[0][step] + alone[1][step]) / 2) < 1e-5, step
    batch = calls.rows[calls.blocks[0][0]][0]
    if not chunk:
        for path, _ in inner(calls.blocks, 1):
            assert calls.rows[path] == [batch, batch // 2, batch // 2], path


def test_it_comes_and_goes_with_the_program(deep: Any) -> None:
    chosen, model = adapters(deep), denoiser_of(deep)[1]
    before = {path: sorted(vars(module)) for path, module in model.named_modules()}
    plain = drawn(deep, chosen, Program())
    with attach(deep, chosen, Program(cache=RARE)) as attachment:
        cached = run(deep)
        attachment.set_program(Program())
        assert torch.equal(run(deep), plain)
        assert attachment.hook.cache is None
        attachment.set_program(Program(cache=RARE))
        assert torch.equal(run(deep), cached)
    after = {path: sorted(vars(module)) for path, module in model.named_modules()}
    differing = [path for path in before if before[path] != after[path]]
    assert differing in ([], [""])
    assert relative(cached, plain) > 1e-6


@pytest.mark.parametrize("deep", ["sd3"], indirect=True)
def test_a_cached_denoiser_is_compiled_block_by_block(deep: Any) -> None:
    torch._dynamo.reset()
    chosen, program = adapters(deep, 1), Program(cache=CachePlan(interval=2))
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    eager = drawn(deep, chosen, program, 3)
    with attach(deep, chosen, program, compile={"backend": backend}):
        assert relative(run(deep, num_inference_steps=3), eager) < 1e-5
    assert graphs >= 2
    assert torch.equal(drawn(deep, chosen, program, 3), eager)
    torch._dynamo.reset()


def test_plans_that_make_no_sense_are_refused(deep: Any) -> None:
    chosen = adapters(deep)
    for values in ({"interval": 0}, {"outer": 0}, {"tolerance": -1.0}, {"tolerance": float("nan")}):
        with pytest.raises(UsageError, match="begin at 1, tolerance at 0"):
            CachePlan(**values)
    with (
        attach(deep, chosen, Program(cache=CachePlan(outer=9))),
        pytest.raises(UsageError, match="lower outer"),
    ):
        run(deep)
    programs = [Program(cache=RARE), Program()]
    with attach(deep, chosen, programs), pytest.raises(UsageError, match="cache plans"), Predictions(deep):
        run(deep, num_images_per_prompt=2)
