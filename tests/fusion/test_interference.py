"""The interference report against dense references, its advice, its picture, and features on activations."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from tiny import layer_table, random_adapter, tiny_pipeline

from loracomp.adapter import Adapter
from loracomp.errors import BaseMismatchError, UsageError
from loracomp.fusion.advice import advise
from loracomp.fusion.heatmap import draw
from loracomp.fusion.interference import block_of, collisions, examine, interference
from loracomp.lowrank import LowRank
from loracomp.pipeline import layers_of
from loracomp.pipeline.features import CALIBRATION, feature_cosines

SUFFIXES = ("to_q", "to_v", "conv1", "proj_in", "q_proj")


def triple(kind: str = "sd15") -> list[Adapter]:
    shapes = layer_table(tiny_pipeline(kind))
    return [
        random_adapter(shapes, SUFFIXES[n:], rank=2 + n, alpha=1.0 + n, seed=n, name=f"a{n}")
        for n in range(3)
    ]


def principal(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean squared cosine of the principal angles between column spaces."""
    bases = [torch.linalg.qr(part.double()).Q for part in (first, second)]
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).square().mean())


def test_a_layer_agrees_with_dense_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 12, 20), (2, 12, 20), (4, 12, 20)]
    updates = [
        LowRank(torch.randn(r, d, generator=generator), torch.randn(o, r, generator=generator), float(n + 1))
        for n, (r, o, d) in enumerate(shapes)
    ]
    weights = [1.0, -0.5, 2.0]
    found = examine([updates[0], None, *updates[1:]], [1.0, 9.0, -0.5, 2.0], 4)
    deltas = [update.delta(torch.float64) for update in updates]
    for i, j in combinations(range(3), 2):
        x, y = (0, 2, 3)[i], (0, 2, 3)[j]
        assert float(found.products[x, y]) == pytest.approx(float((deltas[i] * deltas[j]).sum()), rel=1e-4)
        assert float(found.outputs[x, y]) == pytest.approx(principal(updates[i].up, updates[j].up), rel=1e-4)
        expected = principal(updates[i].down.T, updates[j].down.T)
        assert float(found.inputs[x, y]) == pytest.approx(expected, rel=1e-4)
    energies = torch.linalg.svdvals(sum(w * d for w, d in zip(weights, deltas, strict=True))).square()
    assert found.energy == pytest.approx(float(energies.sum()), rel=1e-4)
    assert found.lost == pytest.approx(float(energies[4:].sum()), rel=1e-4)
    assert float(found.products[1].abs().sum() + found.outputs[1].abs().sum()) == 0


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_blocks_add_up(kind: str) -> None:
    adapters = triple(kind)
    report = interference(adapters, [1.0, 0.5, -2.0])
    for index, (adapter, weight) in enumerate(zip(adapters, report.weights, strict=True)):
        dense = sum(float(layer.delta(torch.float64).square().sum()) for layer in adapter.layers.values())
        assert report.whole.norms[index] == pytest.approx(abs(weight) * dense**0.5, rel=1e-5)
        parts = sum(block.norms[index] ** 2 for block in report.blocks)
        assert parts == pytest.approx(report.whole.norms[index] ** 2, rel=1e-5)
    assert {block.name for block in report.blocks} == {block_of(p) for a in adapters for p in a.layers}
    assert 0 <= report.whole.lost <= 1 and len(report.whole.cosines) == 3


def test_an_adapter_conflicts_with_itself_and_not_with_strangers() -> None:
    one, other, _ = triple()
    twins = interference([one, one.scaled(0.5)])
    assert all(value == pytest.approx(1, abs=1e-4) for block in twins.blocks for value in block.cosines)
    assert all(value == pytest.approx(1, abs=1e-3) for block in twins.blocks for value in block.overlaps)
    assert twins.whole.lost == pytest.approx(0, abs=1e-6)
    strangers = interference([one, other]).whole
    assert abs(strangers.cosines[0] or 0) < 0.1 and (strangers.overlaps[0] or 0) < 0.2


def louder(adapter: Adapter, factor: float) -> Adapter:
    return replace(adapter.scaled(factor), name="loud")


def test_advice_follows_the_findings() -> None:
    one, other, third = triple()
    assert advise(interference([one, other])).method == "merge"
    same = advise(interference([one, replace(one, name="copy")]))
    assert same.method == "merge" and "same thing" in same.reason
    assert "opposite" in advise(interference([one, one.scaled(-1)])).reason
    loud = advise(interference([one, louder(one, 1.0), louder(other, 30)])).reason
    assert "same thing" in loud
    drowned = advise(interference([third, louder(other, 30)]))
    assert drowned.method == "lion" and "loud is" in drowned.reason
    on_purpose = interference([other, replace(other.scaled(1.0), name="b")], [1.0, 0.1])
    assert "drown" not in advise(on_purpose).reason
    mixed = {p: LowRank(v.down, v.up + 2 * one.layers[p].up, v.alpha) for p, v in one.layers.items()}
    assert advise(interference([one, replace(one, layers=mixed)])).reason
    silent = advise(interference([one, other], [1.0, 0.0]))
    assert any("changes nothing" in line for line in silent.warnings)


def test_three_adapters_are_told_the_trade() -> None:
    one, other, third = triple()
    two, three = advise(interference([one, other])), advise(interference([one, other, third]))
    assert any("of 3 adapters" in line for line in three.warnings)
    assert not any("style that lion loses" in line for line in two.warnings)


def test_collisions_are_whole_phrases() -> None:
    one, other, third = triple()

    def called(adapter: Adapter, words: str) -> Adapter:
        return replace(adapter, metadata={"modelspec.trigger_phrase": words})

    found = collisions(
        [called(one, "Mono Style, x"), called(other, "pixel style"), called(third, "a mono style")]
    )
    assert found == {(0, 2): ("mono style",)}
    assert collisions([one, other]) == {}
    warned = advise(interference([called(one, "x"), called(other, "x")]))
    assert any("same words" in line for line in warned.warnings)


def reference(pipe: Any, adapters: list[Adapter], path: str) -> float:
    """Mean |cos| of dense outputs of two adapters on the activations of the same runs."""
    from loracomp.pipeline.sampling import sample

    layer, seen = layers_of(pipe)[path], []

    def watch(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        first, second = (
            torch.nn.functional.linear(inputs[0], a.layers[path].delta())
            if module.weight.ndim == 2
            else torch.nn.functional.conv2d(
                inputs[0], a.layers[path].delta(), padding=module.padding
            ).movedim(1, -1)
            for a in adapters
        )
        seen.append(float(torch.cosine_similarity(first, second, dim=-1).abs().mean()))

    handle = layer.register_forward_hook(watch)
    for adapter in adapters:
        sample(pipe, CALIBRATION, CALIBRATION.prompts(adapter), [], 0.0)
    handle.remove()
    return sum(seen) / len(seen)


def test_features_are_cosines_of_real_outputs() -> None:
    pipe = tiny_pipeline("sd15")
    shapes = layer_table(pipe)
    adapters = [random_adapter(shapes, SUFFIXES, rank=2 + n, seed=n, name="a cat") for n in range(2)]
    found = feature_cosines(pipe, [*adapters, random_adapter(shapes, ("to_k",), name="a cat")])
    assert set(found) == set(adapters[0].layers)
    for suffix in ("conv1", "to_q", "q_proj"):
        path = next(path for path in found if path.endswith(suffix))
        assert float(found[path][0, 1]) == pytest.approx(reference(pipe, adapters, path), rel=1e-3)
        assert bool(found[path][2].isnan().all()) and bool(found[path].diagonal().isnan().all())
    assert not any(module._forward_hooks for module in layers_of(pipe).values())
    report = interference(adapters, features={path: table[:2, :2] for path, table in found.items()})
    values = [block.features[0] for block in report.blocks if block.features]
    assert len(values) == len(report.blocks) and all(
        value is not None and 0 <= value <= 1 for value in values
    )


def test_the_picture_shows_every_block_and_pair() -> None:
    report = interference(triple())
    image = draw(report)
    assert image.width >= 58 * (len(report.blocks) + 1) and image.height > 3 * 26 * len(report.pairs)
    twins = draw(interference([triple()[0], replace(triple()[0], name="a very long name of an adapter" * 3)]))
    reds = [pixel for _, pixel in twins.getcolors(1 << 24) or [] if pixel == (214, 72, 56)]
    assert reds


def test_what_cannot_be_compared_is_refused() -> None:
    one, other, _ = triple()
    with pytest.raises(UsageError, match="two or more"):
        interference([one])
    with pytest.raises(UsageError, match="one weight"):
        interference([one, other], [1.0])
    with pytest.raises(BaseMismatchError):
        interference([one, replace(other, base="sdxl")])
