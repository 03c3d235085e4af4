"""Attackers with gradients, marks, edits and autoencoders of their own."""

from __future__ import annotations

from typing import Any

import markworlds as worlds
import pytest
import torch
from tiny import layer_table, random_adapter, tiny_pipeline
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.training.watermark import adversary, trials
from loracomp.training.watermark.studio import Studio
from loracomp.watermark.codec import Codec
from loracomp.watermark.networks import Shape

SHAPE = Shape(4, 16, 32, 8, widths=(8, 8), blocks=(1, 1), bits=8)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline("sd15")


@pytest.fixture(scope="module")
def adapter(pipe: Any) -> Adapter:
    return random_adapter(layer_table(pipe), ("to_q", "to_v"), rank=2, base="sd15", size=0.2)


@pytest.fixture(scope="module")
def studio(pipe: Any) -> Studio:
    return Studio(pipe, ["a cat", "a dog"], steps=1, guidance=1.0, side=32)


def test_gradients_move_features_further_than_noise_within_the_budget() -> None:
    matrix = torch.randn(3 * 64, 20, generator=worlds.source(2))
    x = 0.2 + 0.6 * torch.rand(2, 3, 8, 8, generator=worlds.source(1))

    def features(pictures: Tensor) -> Tensor:
        return pictures.flatten(1) @ matrix

    moved = adversary.pushed(x, features, 4 / 255)
    assert float((moved - x).abs().max()) <= 4 / 255 + 1e-6
    noise = x + 4 / 255 * torch.randn(x.shape, generator=worlds.source(3)).sign()
    far, chance = (float((features(y) - features(x)).norm()) for y in (moved, noise))
    assert far > 2 * chance
    assert torch.equal(moved, adversary.pushed(x, features, 4 / 255))
    assert torch.equal(adversary.pushed(x, features, 0.0), x)


def test_embeddings_and_surrogates_are_attacked_each_at_its_budgets(studio: Studio, adapter: Adapter) -> None:
    surrogate = Codec.fresh(SHAPE, "sd15").to("cpu")
    cases = adversary.gradient_cases(studio, surrogate, steps=4)
    assert [(case.attack, case.level) for case in cases[::3]] == [
        ("embedding", "2/255"),
        ("surrogate", "2/255"),
    ]
    plain = studio.alone(adapter)
    for case, budget in zip(cases, 2 * adversary.BUDGETS, strict=True):
        change = float((case.pictures(adapter) - plain).abs().max())
        assert 0 < change <= (budget + 1) / 255
    read = [surrogate.read(pictures) for pictures in (plain, cases[-1].pictures(adapter))]
    assert float((read[1] - read[0]).norm()) > 0
    assert len(adversary.gradient_cases(studio)) == 3


def test_a_second_mark_is_one_more_residual(studio: Studio, adapter: Adapter) -> None:
    codec = Codec.fresh(SHAPE, "sd15").to("cpu")
    once, twice = (case.pictures(adapter) for case in adversary.overwriting_cases(studio, codec))
    plain = studio.reencoded(studio.alone(adapter))
    near, far = (float((made - plain).square().mean().sqrt()) for made in (once, twice))
    assert 0 < near < far


def test_an_edit_leaves_the_rest_as_it_was(studio: Studio, adapter: Adapter) -> None:
    plain = studio.alone(adapter)
    for area, case in zip(adversary.AREAS, adversary.editing_cases(studio), strict=True):
        changed = (case.pictures(adapter) != plain).any(1).float().mean((1, 2))
        assert ((changed > 0) & (changed <= area + 0.06)).all()


def test_a_foreign_autoencoder_is_used(studio: Studio, adapter: Adapter) -> None:
    torch.manual_seed(1)
    other = tiny_pipeline("sd15").vae
    for values in other.parameters():
        values.data.add_(0.02 * torch.randn_like(values))
    (case,) = adversary.foreign_cases(studio, other)
    assert not torch.equal(case.pictures(adapter), studio.reencoded(studio.alone(adapter)))
    (same,) = adversary.foreign_cases(studio, studio.pipe.vae)
    assert torch.equal(same.pictures(adapter), studio.reencoded(studio.alone(adapter)))


def test_they_are_attacks_like_any_other(studio: Studio, adapter: Adapter) -> None:
    codec = Codec.fresh(SHAPE, "sd15").to("cpu")
    rows, *_ = trials.attack(
        adapter.scaled(1.1), adapter, worlds.key(bits=8), codec, studio, foreign=studio.pipe.vae,
        names=("overwrite", "edit", "re-encode"),
    )  # fmt: skip
    found = [(row.attack, row.level) for row in rows]
    assert found == [
        *(("re-encode", level) for level in ("x1", "x4")),
        *(("edit", level) for level in ("0.2", "0.4", "0.6")),
        *(("overwrite", level) for level in ("1", "2")),
        ("re-encode", "foreign"),
    ]
