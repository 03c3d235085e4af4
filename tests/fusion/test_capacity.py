"""Room for adapters to come: a swap writes into the tensors that are there; compiled code stays valid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from predictions import relative
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import Program
from loracomp.fusion.stacked import StackedUpdate, capacity_class
from loracomp.lowrank import LowRank
from loracomp.pipeline import Attachment, Capacity, attach, denoiser_of, detach

LATER = ("to_q", "to_v", "ff.net.2", "proj_in")


def test_classes_hold_what_they_are_for_and_waste_little() -> None:
    classes = [capacity_class(rank) for rank in range(1, 1000)]
    assert all(size >= rank for rank, size in enumerate(classes, 1))
    assert classes == sorted(classes)
    assert len(set(classes)) < 25
    assert all(size - rank < max(16, rank / 2) for rank, size in enumerate(classes, 1))
    assert [capacity_class(32 * count) for count in (1, 3, 5, 8)] == [32, 96, 160, 256]


def fresh(pipe: Any, adapters: list[Adapter], *program: Any, **options: Any) -> Tensor:
    """A run with a new attachment."""
    with attach(pipe, adapters, *program):
        return run(pipe, **options)


def buffers(attachment: Attachment) -> dict[str, tuple[int, int]]:
    return {p: (u.down.data_ptr(), u.up.data_ptr()) for p, (_, u) in attachment.updates.items()}


@pytest.mark.parametrize("method", ["merge", "composite"])
def test_a_swap_is_a_fresh_attachment_in_the_old_tensors(pipe: Any, method: str) -> None:
    shapes = layer_table(pipe)
    first = [random_adapter(shapes, ("to_q",), rank=4, seed=seed) for seed in range(3)]
    then = [random_adapter(shapes, LATER, rank=2 + seed, alpha=3.0, seed=5 + seed) for seed in range(2)]
    attachment = attach(pipe, first, method, capacity=Capacity(12, LATER))
    before = buffers(attachment)
    run(pipe)
    attachment.swap(then, weights=[0.7, -0.5])
    swapped = run(pipe)
    assert buffers(attachment) == before
    assert relative(swapped, fresh(pipe, then, method, [0.7, -0.5])) < 1e-6
    attachment = attach(pipe, then, method, capacity=Capacity(12))
    attachment.swap(then[1:])
    assert relative(run(pipe), fresh(pipe, then[1:], method)) < 1e-6


def test_what_was_reserved_and_is_unused_changes_nothing(pipe: Any) -> None:
    base, shapes = run(pipe), layer_table(pipe)
    adapter = random_adapter(shapes, ("to_q",))
    with attach(pipe, [adapter], weights=[0.0], capacity=Capacity(32, "default")) as attachment:
        assert len(attachment.updates) > len(adapter.layers)
        assert torch.equal(run(pipe), base)


def test_a_swap_that_does_not_fit_is_refused_and_changes_nothing(pipe: Any) -> None:
    shapes = layer_table(pipe)
    small, large = random_adapter(shapes, ("to_q",), rank=2), random_adapter(shapes, ("to_q",), rank=20)
    with attach(pipe, [small]) as attachment:
        before = run(pipe)
        with pytest.raises(UsageError, match="rank 20 needed and 8 reserved"):
            attachment.swap([large])
        with pytest.raises(UsageError, match=r"ff\.net\.2.* and 0 reserved"):
            attachment.swap([random_adapter(shapes, ("ff.net.2",))])
        assert attachment.adapters == (small,)
        assert torch.equal(run(pipe), before)


class Counter:
    """Counts the graphs that the compiler makes."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def compiler() -> Iterator[Counter]:
    torch._dynamo.reset()
    yield Counter()
    torch._dynamo.reset()


def adapters(pipe: Any, seed: int, count: int = 2) -> list[Adapter]:
    shapes = {path: shape for path, shape in layer_table(pipe).items() if not path.startswith("text")}
    suffixes = ("to_q", "ff.net.2", "conv1")
    return [random_adapter(shapes, suffixes, rank=3, seed=seed + n) for n in range(count)]


def test_nothing_is_compiled_twice(compiler: Counter, recompilations: Any) -> None:
    pipe = tiny_pipeline("sd15")
    steps = {"num_inference_steps": 2}
    options = {"backend": compiler, "fullgraph": True}
    attachment = attach(pipe, adapters(pipe, 0), compile=options)
    first = run(pipe, **steps)
    with recompilations() as count:
        attachment.set_program("merge", [0.3, -0.8])
        changed = run(pipe, **steps)
        attachment.set_weights([1.0, 1.0])
        run(pipe, **steps)
        attachment.set_weights([0.3, -0.8])
        assert torch.equal(run(pipe, **steps), changed)
        attachment.set_program(Program("switch", (1.0, 0.5), {"period": 0.5}))
        run(pipe, **steps)
        attachment.swap(adapters(pipe, 7, count=1))
        run(pipe, **steps)
        attachment.swap(adapters(pipe, 0), "merge")
        again = run(pipe, **steps)
    assert count() == 0
    assert compiler.graphs == 1
    assert torch.equal(again, first)
    detach(pipe)
    assert relative(first, fresh(pipe, adapters(pipe, 0), **steps)) < 1e-5


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_blocks_share_their_graphs_as_they_do_without_adapters(kind: str, recompilations: Any) -> None:
    def graphs_of(pipe: Any) -> int:
        counter = Counter()
        denoiser_of(pipe)[1].compile_repeated_blocks(fullgraph=True, backend=counter)  # type: ignore[operator]
        run(pipe, num_inference_steps=2)
        return counter.graphs

    alone = graphs_of(tiny_pipeline(kind))
    pipe = tiny_pipeline(kind)
    attachment = attach(pipe, adapters(pipe, 0))
    eager = run(pipe, num_inference_steps=2)
    torch._dynamo.reset()
    assert graphs_of(pipe) == alone
    assert relative(run(pipe, num_inference_steps=2), eager) < 1e-5
    with recompilations() as count:
        attachment.set_program("merge", [0.1, 0.9])
        attachment.swap(adapters(pipe, 3))
        run(pipe, num_inference_steps=2)
    assert count() == 0


def test_a_denoiser_that_was_compiled_before_still_follows_the_program(compiler: Counter) -> None:
    pipe = tiny_pipeline("flux")
    chosen = adapters(pipe, 0)
    program = Program("switch", (1.0, 1.0), {"period": 0.5})
    eager = fresh(pipe, chosen, program, num_inference_steps=2)
    plain = pipe.transformer
    pipe.transformer = torch.compile(plain, backend=compiler)
    assert relative(fresh(pipe, chosen, program, num_inference_steps=2), eager) < 1e-5
    pipe.transformer = plain
    plain.compile(backend=compiler)
    assert relative(fresh(pipe, chosen, program, num_inference_steps=2), eager) < 1e-5
    assert compiler.graphs > 0


@torch.no_grad()
def test_a_layer_alone_in_every_shape() -> None:
    for module, shape in (
        (nn.Linear(6, 5), (2, 3, 6)),
        (nn.Linear(6, 5), (2, 6)),
        (nn.Conv2d(6, 5, 3, 2), (2, 6, 7, 7)),
    ):
        x = torch.randn(*shape)
        before = module(x)
        tail = tuple(module.weight.shape[2:])
        layer = LowRank(torch.randn(3, 6, *tail), torch.randn(5, 3, *(1,) * len(tail)), alpha=2.0)
        update = StackedUpdate([(0, layer)], module)
        assert torch.equal(module(x), before)
        update.gate = update.scale[None].repeat(2, 1)
        weight = layer.delta()
        moved = nn.functional.conv2d(x, weight, stride=2) if tail else nn.functional.linear(x, weight)
        assert relative(module(x), before + moved) < 1e-6
        update.leave(module)
        assert torch.equal(module(x), before)
