"""Laws of watching a gate, and of the constants that stand for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import layer_table, random_adapter, run, tiny_pipeline

from loracomp.adapter import Adapter
from loracomp.errors import FormatError, ResourceError, UsageError
from loracomp.fusion import Program
from loracomp.fusion.gated import Form, GateWeights
from loracomp.fusion.gated.chart import layers_chart, maps_chart
from loracomp.fusion.gated.static import factors, write_table
from loracomp.fusion.gated.watching import Seen
from loracomp.pipeline import attach, base_of, denoiser_of
from loracomp.pipeline.explaining import Explanation

SUFFIXES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1")


def world(kind: str, path: Path, form: Form, size: float) -> tuple[Any, list[Adapter], Program]:
    """A pipeline, two adapters, and a program with a gate of random vectors."""
    pipe = tiny_pipeline(kind)
    prefix, shapes = denoiser_of(pipe)[0] + ".", layer_table(pipe)
    adapters = [random_adapter(shapes, SUFFIXES[n:], rank=2 + n, seed=n, name=f"a{n}") for n in range(2)]
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for place, shape in shapes.items():
        if place.startswith(prefix):
            start = form.initial(shape[0])
            layers[place] = start + size * torch.randn(start.shape, generator=generator)
    GateWeights(form, base_of(pipe), layers).save(path)
    return pipe, adapters, Program("gated", (1.0, 0.8), {"gate": str(path)})


def seen_in(pipe: Any, adapters: list[Adapter], program: Program) -> tuple[Seen, torch.Tensor]:
    with attach(pipe, adapters, program) as attachment:
        explanation = Explanation(attachment)
        image = run(pipe)
        return explanation.seen(), image


@pytest.mark.parametrize("kind", ["sd15", "sd3", "flux"])
def test_watching_changes_nothing_and_sees_every_layer_and_step(kind: str, tmp_path: Path) -> None:
    pipe, adapters, program = world(kind, tmp_path / "gate", Form.ours(), 0.5)
    with attach(pipe, adapters, program):
        plain = run(pipe)
    seen, image = seen_in(pipe, adapters, program)
    assert torch.equal(image, plain)
    name = denoiser_of(pipe)[0] + "."
    changed = {path for adapter in adapters for path in adapter.layers if path.startswith(name)}
    assert set(seen.layers) == changed
    for path, values in seen.layers.items():
        there = torch.tensor([path in adapter.layers for adapter in adapters])
        assert values.shape == (4, 2)
        assert torch.equal(~values.isnan(), there.expand(4, 2)), path
    assert list(seen.levels) == sorted(seen.levels, reverse=True)
    assert seen.maps.shape[0] == 2
    assert not bool(seen.maps.isnan().any())
    assert 0 < seen.spread < 1


def test_a_gate_that_is_a_constant_is_seen_and_replaced_exactly(tmp_path: Path) -> None:
    """With equal biases alone the gate is v σ(b), whatever passes through."""
    form = Form(base=False, lora=False, cross=False, strength=1.5)
    pipe, adapters, program = world("sd15", tmp_path / "gate", form, 0.0)
    seen, image = seen_in(pipe, adapters, program)
    assert all(bool((values[~values.isnan()] - 0.75).abs().max() < 1e-3) for values in seen.layers.values())
    assert bool(((seen.maps - 0.75).abs() < 1e-3).all())
    assert seen.spread < 1e-5
    write_table(tmp_path / "table", seen, ["a0", "a1"])
    table = Program("gated", (1.0, 0.8), {"table": str(tmp_path / "table")})
    with attach(pipe, adapters, table) as attachment:
        assert attachment.hook.gating is None
        again = run(pipe)
    assert float((again - image).norm() / image.norm()) < 1e-3
    with attach(pipe, adapters, "merge", [1.0, 0.8]):
        assert float((run(pipe) - image).norm() / image.norm()) > 1e-2


def test_the_table_is_nearer_to_the_gate_than_merge_is(tmp_path: Path) -> None:
    pipe, adapters, program = world("sd15", tmp_path / "gate", Form(), 0.2)
    seen, image = seen_in(pipe, adapters, program)
    write_table(tmp_path / "table", seen, ["a0", "a1"])
    with attach(pipe, adapters, Program("gated", (1.0, 0.8), {"table": str(tmp_path / "table")})):
        table = run(pipe)
    with attach(pipe, adapters, "merge", [1.0, 0.8]):
        merged = run(pipe)
    assert float((table - image).norm()) < 0.5 * float((merged - image).norm())


def test_tables_of_other_runs(tmp_path: Path) -> None:
    path = tmp_path / "table"
    seen = Seen(
        (1.0, 0.5), {"unet.a": torch.tensor([[0.5, 2.0], [1.0, torch.nan]])}, torch.ones(2, 2, 2), 0.1
    )
    write_table(path, seen, ["x", "y"])
    assert factors(str(path), 4, 2)["unet.a"].tolist() == [[0.5, 2.0], [0.5, 2.0], [1.0, 1.0], [1.0, 1.0]]
    with pytest.raises(UsageError, match="2 adapters, and there are 3"):
        factors(str(path), 4, 3)
    with pytest.raises(ResourceError, match="no such table"):
        factors(str(tmp_path / "none"), 4, 2)
    for broken in ("", "[]", "{}", json.dumps({"loracomp.gates": 1, "layers": {"a": [[1], [1, 2]]}})):
        (tmp_path / "broken").write_text(broken)
        with pytest.raises(FormatError, match="not a table"):
            factors(str(tmp_path / "broken"), 4, 2)


def test_only_gates_are_explained(tmp_path: Path) -> None:
    pipe, adapters, _ = world("sd15", tmp_path / "gate", Form.ours(), 0.1)
    with attach(pipe, adapters, "merge") as attachment, pytest.raises(UsageError, match="--method gated"):
        Explanation(attachment)


def test_charts_show_less_in_blue_more_in_red_and_nothing_in_gray() -> None:
    less, more = torch.full((3, 1), 0.5), torch.full((3, 1), 1.5)
    values = torch.cat([less, more, torch.full((3, 1), torch.nan)], dim=1)
    maps = torch.stack([torch.full((8, 8), value) for value in (0.5, 1.5, torch.nan)])
    paths = ("unet.down_blocks.0.attentions.0.to_q", "unet.mid_block.attentions.0.to_q")
    seen = Seen((1.0, 0.6, 0.2), dict.fromkeys(paths, values), maps, 0.0)
    names = ["less", "more", "none"]
    chart = layers_chart(seen, names)
    colors = {chart.getpixel((x, 40)) for x in range(chart.width)}
    assert {(58, 111, 196), (214, 72, 56), (225, 225, 225)} <= colors
    shown = maps_chart(seen, names, Image.new("RGB", (64, 32), "white"))
    red = [shown.getpixel((14 + place * 206 + 90, 60)) for place in range(1, 4)]
    assert red[0][2] > red[0][0]
    assert red[1][0] > red[1][2]
    assert red[2][0] == red[2][2]
