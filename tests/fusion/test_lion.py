"""LiON live: it is the merge of the same name, and its edits come and go with the method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import layer_table, random_adapter, run

from loracomp.adapter import Acceleration, Adapter
from loracomp.errors import BaseMismatchError, UsageError
from loracomp.fusion import Program
from loracomp.fusion.edits import edited, key
from loracomp.fusion.lion import alike
from loracomp.fusion.offline import merge
from loracomp.lowrank import LowRank, cosine, norm
from loracomp.pipeline import attach


def pair(pipe: Any) -> list[Adapter]:
    shapes = layer_table(pipe)
    return [
        random_adapter(shapes, rank=3, size=0.2, name="a"),
        random_adapter(shapes, rank=2, seed=1, name="b"),
    ]


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def test_live_equals_the_merged_file(pipe: Any) -> None:
    adapters = pair(pipe)
    options: dict[str, Any] = {"consistency": 0.8, "conflict": 0.0, "removal": 0.7}
    with attach(pipe, adapters, Program("lion", (1.0, 0.7), options)):
        live = run(pipe)
    with attach(pipe, [merge(adapters, [1.0, 0.7], "lion", **options)]):
        assert relative(live, run(pipe)) < 1e-5
    with attach(pipe, adapters, "merge", [1.0, 0.7]):
        assert relative(live, run(pipe)) > 1e-3


def test_edits_follow_the_program(pipe: Any) -> None:
    adapters = pair(pipe)
    with attach(pipe, adapters, "merge") as attachment:
        plain = run(pipe)
        attachment.set_program("lion")
        edited_run = run(pipe)
        attachment.swap(adapters[::-1], "lion")
        swapped = run(pipe)
        attachment.swap(adapters, "merge")
        assert torch.equal(run(pipe), plain)
    with attach(pipe, adapters, "lion"):
        assert torch.equal(run(pipe), edited_run)
    with attach(pipe, adapters[::-1], "lion"):
        assert torch.equal(run(pipe), swapped)


def stack(*pairs: tuple[torch.Tensor, torch.Tensor]) -> list[Adapter]:
    return [Adapter({"unet.x": LowRank(down, up)}, "custom", f"a{n}") for n, (up, down) in enumerate(pairs)]


def test_conflicts_are_taken_apart_and_norms_pulled_together() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(8, 2, generator=generator), torch.randn(2, 6, generator=generator)
    other = torch.randn(8, 2, generator=generator), torch.randn(2, 6, generator=generator)
    adapters = stack((up, down), (9 * up + 0.1 * other[0], down), other)
    first, second, third = (a.layers["unet.x"] for a in alike(adapters, consistency=0.0, conflict=0.9))
    assert cosine(first, adapters[0].layers["unet.x"]) == pytest.approx(1)
    assert abs(cosine(first, second)) < 1e-6
    assert cosine(third, adapters[2].layers["unet.x"]) == pytest.approx(1)
    sizes = [norm(a.layers["unet.x"]) for a in alike(adapters[:2], consistency=1.0, conflict=1.0)]
    assert sizes[0] * 2.25 == pytest.approx(sizes[1], rel=0.02)  # 9 : 1, each moved by at most a factor of 2


def test_accelerators_are_not_edited() -> None:
    fast = {Acceleration.KEY: Acceleration(4).to_json()}
    adapters = stack(*((torch.eye(4)[:, :2] * size, torch.eye(5)[:2]) for size in (1, 4, 9)))
    adapters[1] = replace(adapters[1], metadata=fast)
    found = edited(adapters, [Program("lion", (1.0,) * 3, always=(1,))])
    assert found[1] is adapters[1]
    assert [a.layers["unet.x"].rank for a in found] == [2, 2, 2]
    assert norm(found[2].layers["unet.x"]) < norm(adapters[2].layers["unet.x"])
    assert edited(adapters, [Program("merge", (1.0,) * 3)]) == adapters


def test_what_cannot_be_is_refused() -> None:
    adapters = stack((torch.eye(3), torch.eye(3)), (torch.eye(3), torch.eye(3)))
    with pytest.raises(UsageError, match="different edits"):
        key([Program("lion", (1.0,)), Program("merge", (1.0,))])
    with pytest.raises(UsageError, match="outside"):
        Program("lion", (1.0,), {"conflict": 2}).table(3)
    with pytest.raises(BaseMismatchError):
        edited([adapters[0], replace(adapters[1], base="sdxl")], [Program("lion", (1.0, 1.0))])
