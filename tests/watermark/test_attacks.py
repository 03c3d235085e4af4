"""Attacks do what they say, and the harness measures marked and unmarked alike."""

from __future__ import annotations

import math
from typing import Any

import markworlds as worlds
import pytest
import torch
from tiny import layer_table, random_adapter, tiny_pipeline
from torch import Tensor

from loracomp import merge
from loracomp.adapter import Adapter
from loracomp.errors import UnknownNameError, UsageError
from loracomp.fusion.gated import usable
from loracomp.fusion.offline import MERGES
from loracomp.lowrank import distance, norm
from loracomp.training.watermark import trials
from loracomp.training.watermark.studio import Studio
from loracomp.watermark.attacks import IMAGE_ATTACKS, WEIGHT_ATTACKS, Case, Suite, image_cases, weight_cases
from loracomp.watermark.attacks.weights import average, refused
from loracomp.watermark.calibration import joined
from loracomp.watermark.codec import Codec
from loracomp.watermark.networks import Shape

KEY = worlds.key(bits=8)
SHAPE = Shape(4, 16, 32, 8, widths=(8, 8), blocks=(1, 1), bits=8)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline("sd15")


@pytest.fixture(scope="module")
def adapter(pipe: Any) -> Adapter:
    return random_adapter(layer_table(pipe), ("to_q", "to_v", "conv1"), rank=4, base="sd15", size=0.2)


def pictures(count: int = 3, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=worlds.source(1))


class Plain:
    """A codec that reads the picture's own values."""

    keyed = True

    def __init__(self) -> None:
        self.shape = Shape(3, 16, 16, 64, bits=8)

    def read(self, images: Tensor, batch: int = 0) -> Tensor:
        return images.reshape(len(images), 3, -1)[:, :, :64].reshape(len(images), -1) - 0.5


@pytest.mark.parametrize("name", sorted(IMAGE_ATTACKS))
def test_attacked_pictures_are_eight_bit_pictures(name: str) -> None:
    attack, x = IMAGE_ATTACKS[name], pictures()
    changes = []
    for level in attack.levels:
        made = attack(x, level)
        assert made.shape[:2] == x.shape[:2]
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        assert float((made * 255 - (made * 255).round()).abs().max()) < 1e-3
        assert torch.equal(made, attack(x, level))
        changes.append(made)
    whole = [made for made in changes if made.shape == x.shape]
    assert all(float((made - x).abs().max()) > 0 for made in whole)


def test_some_attacks_are_exact() -> None:
    x = (pictures() * 255).round() / 255
    assert torch.equal(IMAGE_ATTACKS["flip"](IMAGE_ATTACKS["flip"](x, 1), 1), x)
    turned = x
    for _ in range(4):
        turned = IMAGE_ATTACKS["rotate"](turned, 90)
    assert torch.equal(turned, x)
    assert IMAGE_ATTACKS["crop"](x, 0.25).shape[-1] == 16
    hue = IMAGE_ATTACKS["hue"]
    gray = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert float((hue(gray, 0.25) - gray).abs().max()) < 0.01


def total(adapter: Adapter) -> float:
    return math.sqrt(sum(norm(layer) ** 2 for layer in adapter.layers.values()))


def apart(first: Adapter, second: Adapter) -> float:
    return math.sqrt(sum(distance(first.layers[p], second.layers[p]) ** 2 for p in first.layers)) / total(
        first
    )


@pytest.mark.parametrize("name", sorted(WEIGHT_ATTACKS))
def test_weight_attacks_hurt_more_at_worse_levels(name: str, adapter: Adapter) -> None:
    attack = WEIGHT_ATTACKS[name]
    errors = [apart(adapter, attack(adapter, level)) for level in attack.levels]
    assert all(math.isfinite(error) for error in errors)
    if name in ("rank", "energy", "prune", "quantize", "noise"):
        assert errors == sorted(errors)
        assert errors[0] < 0.15
    assert errors[-1] > 0.02


def test_weight_attacks_are_what_they_say(adapter: Adapter) -> None:
    assert apart(adapter, WEIGHT_ATTACKS["rank"](adapter, 1.0)) < 1e-6
    assert max(WEIGHT_ATTACKS["rank"](adapter, 0.25).ranks) == 1
    assert apart(adapter.scaled(-1), WEIGHT_ATTACKS["strength"](adapter, -1.0)) < 1e-9
    gone = WEIGHT_ATTACKS["drop"](adapter, 0)
    assert all(layer.rank == 0 for path, layer in gone.layers.items() if "attn" in path)
    assert any(layer.rank for path, layer in gone.layers.items() if "resnets" in path)
    other = adapter.scaled(3.0)
    assert apart(adapter.scaled(2.0), average([adapter, other])) < 1e-6


def test_folding_and_subtracting_leaves_rounding(pipe: Any, adapter: Adapter) -> None:
    modules = dict(pipe.unet.named_modules())

    def weight(path: str) -> Tensor:
        return modules[path.removeprefix("unet.")].weight.detach()

    exact = refused(adapter, weight, torch.float64)
    rounded = refused(adapter, weight, torch.float16)
    assert apart(adapter, exact) < 1e-4
    assert 1e-5 < apart(adapter, rounded) < 0.05


def suite(strength: float) -> Suite:
    """Drawing is stubbed: pictures of noise, the marked one with the key's direction in its values."""
    codec: Any = Plain()
    direction = KEY.direction(192).float().reshape(3, 64)

    def draw(adapter: Adapter) -> Tensor:
        x = 0.5 + 0.08 * torch.randn(60, 3, 16, 16, generator=worlds.source(3))
        size = adapter.layers["unet.a"].scale if "unet.a" in adapter.layers else 0.0
        x.reshape(60, 3, -1)[:, :, :64] += size * 0.35 * direction
        return x.clamp(0, 1)

    from loracomp.lowrank import LowRank

    marked = Adapter({"unet.a": LowRank(torch.ones(1, 2), torch.ones(2, 1), strength)}, "tiny")
    return Suite(marked, Adapter({}, "tiny"), KEY, codec, draw)


def test_the_table_and_the_power_curve() -> None:
    found = suite(1.0)
    rows = found.run([*image_cases(found.draw, ["jpeg", "noise"]), *weight_cases(found.draw, ["strength"])])
    table = {(row.attack, row.level): row for row in rows}
    none = table["none", ""]
    assert none.accuracy > 0.85
    assert none.accuracy_low < none.accuracy < none.accuracy_high
    assert (none.tpr5_1e6, none.psnr) == (1.0, 100.0)
    assert none.tpr_1e2 > 0.8
    assert abs(none.twin_accuracy - 0.5) < 0.15
    assert none.twin_fpr <= 0.05 <= none.twin_fpr_high + 0.05
    assert table["noise", "0.2"].accuracy < none.accuracy
    assert table["strength", "0.4"].strength == pytest.approx(0.4, abs=0.12)
    assert table["strength", "-1"].strength < -0.8
    curve = found.power((0.2, 0.6, 1.0))
    assert [row["tpr5_1e-06"] for row in curve] == sorted(row["tpr5_1e-06"] for row in curve)
    assert curve[0]["tpr5_1e-06"] < curve[-1]["tpr5_1e-06"] == 1
    assert all(row["tpr5_0.001"] >= row["tpr1_0.001"] for row in curve)


def test_an_unmarked_adapter_has_no_power() -> None:
    found = suite(0.0)
    row = found.row(Case("none", "none", "", found.draw))
    assert row.tpr_1e6 == row.tpr5_1e6 == 0
    assert abs(row.accuracy - 0.5) < 0.15
    assert math.isnan(row.tpr_1e3)


def test_every_attack_runs_on_a_real_pipeline(pipe: Any, adapter: Adapter) -> None:
    """Merging by every method, crowds, collusion, the autoencoder, regeneration, fine-tuning."""
    torch.manual_seed(0)
    codec = Codec.fresh(SHAPE, "sd15").to("cpu")
    studio = Studio(pipe, ["a cat"], steps=1, guidance=1.0, side=32)
    shapes = layer_table(pipe)
    others = [random_adapter(shapes, ("to_q", "to_v"), rank=2, base="sd15", seed=n, size=0.2) for n in (3, 4)]
    rows, power, gain = trials.attack(
        adapter.scaled(1.1), adapter, KEY, codec, studio, others=others, copies=[adapter],
        finetuned=lambda one, steps: one.scaled(1 - steps / 10_000),
        names=("merge", "live", "collusion", "fine-tune", "flip", "fold"),
    )  # fmt: skip
    attacks = {(row.kind, row.attack) for row in rows}
    assert {name for kind, name in attacks if kind == "merge"} == set(MERGES)
    assert {name for kind, name in attacks if kind == "live"} == set(usable("sd15"))
    assert {"average", "fine-tune", "flip", "fold"} <= {name for _, name in attacks}
    assert [case.attack for case in trials.crowd_cases(studio, others)] == ["1 other"] * 2 + ["2 other"] * 2
    assert all(math.isfinite(row.accuracy) and math.isfinite(row.twin_accuracy) for row in rows)
    assert len(power) == 8
    assert math.isfinite(gain)
    with pytest.raises(UsageError, match="unknown attack"):
        trials.attack(adapter, adapter, KEY, codec, studio, names=("nothing",))
    with pytest.raises(UnknownNameError, match="jpeg"):
        image_cases(studio.alone, ["jpgg"])


def test_regenerating_at_nothing_is_re_encoding(pipe: Any, adapter: Adapter) -> None:
    studio, x = Studio(pipe, ["a"], steps=1, side=32), pictures(2)
    cases = trials.picture_cases(studio)
    assert [case.attack for case in cases] == ["re-encode"] * 2 + ["regenerate"] * 6
    drawn = studio.reencoded(studio.alone(adapter))
    assert torch.equal(cases[0].pictures(adapter), drawn)
    plain = studio.reencoded(x)
    near = studio.regenerated(x, 1e-4)
    assert float((plain - near).abs().mean()) < 0.05
    assert float((studio.regenerated(x, 0.5) - plain).abs().mean()) > float((plain - near).abs().mean())


def test_calibration_from_a_pipeline(pipe: Any, adapter: Adapter) -> None:
    codec = Codec.fresh(SHAPE, "sd15").to("cpu")
    with pytest.raises(UsageError, match="too few to calibrate"):
        trials.calibrate(codec, pipe, count=2, steps=1)
    found = trials.Negatives(codec)
    rows = pictures(150)
    found.add("base", rows, torch.arange(150))
    found.attacked(rows, torch.arange(150))
    made = found.calibration("sd15")
    assert made.names == ("base", "attacked")
    assert len(made.coordinates) == 300
    assert {rate.population for rate in trials.null_report(made, keys=8, bits=8)} == {"base", "attacked"}


def test_merging_is_what_the_merge_case_draws(pipe: Any, adapter: Adapter) -> None:
    studio = Studio(pipe, ["a cat"], steps=1, guidance=1.0, side=32)
    other = random_adapter(layer_table(pipe), ("to_q",), rank=2, base="sd15", seed=9, size=0.3)
    cases = {(case.kind, case.attack): case for case in trials.merge_cases(studio, [other])}
    wanted = studio.draw([merge([adapter, other], None, "concat")])
    torch.testing.assert_close(cases["merge", "concat"].pictures(adapter), wanted)
    torch.testing.assert_close(cases["live", "merge"].pictures(adapter), wanted, atol=0.02, rtol=0)


def test_calibrations_join() -> None:
    made = joined(
        [("a", torch.ones(2, 3), torch.tensor([0, 0])), ("b", torch.zeros(1, 3), torch.tensor([0]))], "x", "y"
    )
    assert made.population.tolist() == [0, 0, 1]
    assert len(made.cluster.unique()) == 2
