"""Folding: from pristine weights, rounded once, undone without a trace, into live modules and folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import nn

import loracomp
from loracomp.adapter import Adapter
from loracomp.errors import BaseMismatchError, UsageError
from loracomp.fusion.offline import Folding, fold, fold_checkpoint
from loracomp.fusion.offline.lineage import LINEAGE
from loracomp.lowrank import LowRank
from loracomp.pipeline import layers_of

SUFFIXES = ("to_q", "to_v", "q_proj", "conv1", "proj_in")


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_folded_weights_are_the_exact_sum_rounded_once(dtype: torch.dtype) -> None:
    module = nn.Linear(24, 16).to(dtype)
    pristine = module.weight.detach().clone()
    one = Adapter({"unet.a": LowRank(torch.randn(3, 24), torch.randn(16, 3), 2.0)}, "custom", "one")
    two = Adapter({"unet.a": LowRank(torch.randn(5, 24), torch.randn(16, 5))}, "custom", "two")
    folding = Folding({"unet.a": module})
    report = folding.fold([one, two], [0.3, -0.7])
    delta = 0.3 * one.layers["unet.a"].delta(torch.float64) - 0.7 * two.layers["unet.a"].delta(torch.float64)
    exact = pristine.double() + delta
    step = torch.finfo(dtype).eps * exact.abs()
    gap = module.weight.detach().double() - exact
    # The sum is one of float32, which shows where weight and update nearly cancel.
    assert bool((gap.abs() <= 0.51 * step + 1e-6).all())
    lost = float(gap.norm() / delta.norm())
    assert report.loss == pytest.approx(lost, rel=0.01, abs=1e-7)
    assert report.layers[0].change == pytest.approx(float(delta.norm() / pristine.double().norm()), rel=1e-5)
    folding.unfold()
    assert torch.equal(module.weight, pristine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_thousand_cycles_leave_no_trace(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Conv2d(4, 4, 3)}).to(dtype)
    before = bits(net)
    layers = {
        "unet.a": LowRank(torch.randn(2, 8), torch.randn(8, 2)),
        "unet.b": LowRank(torch.randn(2, 4, 3, 3), torch.randn(4, 2, 1, 1)),
    }
    one = Adapter(layers, "custom", "one")
    folding = Folding({"unet.a": net["a"], "unet.b": net["b"]})
    folding.fold([one], [0.7])
    folded = bits(net)
    assert not torch.equal(folded["a.weight"], before["a.weight"])
    for cycle in range(1000):
        folding.fold([one], [0.7 + cycle % 3])
        if cycle % 2:
            folding.unfold()
    folding.fold([one], [0.7])
    assert all(torch.equal(value, folded[key]) for key, value in bits(net).items())
    folding.unfold()
    assert all(torch.equal(value, before[key]) for key, value in bits(net).items())


def test_a_folded_pipeline_draws_what_attached_adapters_draw() -> None:
    pipe = tiny_pipeline("sdxl")
    table = layer_table(pipe)
    adapters = [random_adapter(table, SUFFIXES, seed=seed, rank=seed + 2, alpha=1.0) for seed in range(2)]
    base = run(pipe)
    loracomp.attach(pipe, adapters, "merge", [0.8, -0.5])
    live = run(pipe)
    loracomp.detach(pipe)
    with fold(layers_of(pipe), adapters, [0.8, -0.5]):
        gap = (run(pipe) - live).norm() / live.norm()
    assert float(gap) < 1e-5
    assert torch.equal(run(pipe), base)
    assert not torch.allclose(live, base, atol=1e-3)


def test_a_fold_that_fails_changes_nothing() -> None:
    net = nn.Linear(8, 8)
    good = LowRank(torch.randn(2, 8), torch.randn(8, 2))
    folding = Folding({"unet.a": net})
    folding.fold([Adapter({"unet.a": good}, "custom")])
    before = net.weight.detach().clone()
    for layers in ({"unet.a": good, "unet.b": good}, {"unet.a": LowRank(torch.ones(1, 9), torch.ones(8, 1))}):
        with pytest.raises(BaseMismatchError):
            folding.fold([Adapter(layers, "custom")])
        assert torch.equal(net.weight, before)
    with pytest.raises(UsageError, match="2 weights"):
        folding.fold([Adapter({"unet.a": good}, "custom")], [1.0, 2.0])
    with pytest.raises(UsageError, match="int8"):
        quantised = nn.Module()
        quantised.weight = torch.zeros(8, 8, dtype=torch.int8)
        Folding({"unet.a": quantised}).fold([Adapter({"unet.a": good}, "custom")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder: a denoiser in two bfloat16 shards, a text encoder named as new releases do."""
    place = tmp_path / "source"
    torch.manual_seed(0)
    shards = [{"a.to_q.weight": torch.randn(16, 12), "a.to_q.bias": torch.randn(16)}]
    shards += [{"b.conv.weight": torch.randn(8, 4, 3, 3), "norm.weight": torch.randn(5)}]
    for part in ("unet", "text_encoder", "scheduler"):
        (place / part).mkdir(parents=True)
        (place / part / "config.json").write_text(part)
    (place / "model_index.json").write_text("{}")
    for index, shard in enumerate(shards):
        low = {key: value.bfloat16() for key, value in shard.items()}
        save_file(low, place / "unet" / f"model-{index}.safetensors", {"format": "pt"})
    save_file(
        {"encoder.layers.0.fc1.weight": torch.randn(6, 7)}, place / "text_encoder" / "model.safetensors"
    )
    return place


FOLDED = {
    "unet.a.to_q": ("unet/model-0.safetensors", "a.to_q.weight", (16, 12)),
    "unet.b.conv": ("unet/model-1.safetensors", "b.conv.weight", (8, 4, 3, 3)),
    "text_encoder.text_model.encoder.layers.0.fc1": (
        "text_encoder/model.safetensors",
        "encoder.layers.0.fc1.weight",
        (6, 7),
    ),
}


def for_folder(seed: int, name: str) -> Adapter:
    table = {path: shape for path, (_, _, shape) in FOLDED.items()}
    return random_adapter(table, table, rank=seed, alpha=1.5, seed=seed, name=name)


def test_a_folder_is_folded_component_by_component(folder: Path) -> None:
    target = folder.parent / "new"
    adapters = [for_folder(2, "one"), for_folder(3, "two")]
    report = fold_checkpoint(folder, target, adapters, [1.0, 0.5])
    assert {row.path: row.dtype for row in report.layers} == {
        path: "bfloat16" if path.startswith("unet") else "float32" for path in FOLDED
    }
    changed = set()
    for path, (file, key, _) in FOLDED.items():
        old, new = load_file(folder / file), load_file(target / file)
        delta = adapters[0].layers[path].delta() + 0.5 * adapters[1].layers[path].delta()
        exact = (old[key].float() + delta).to(old[key].dtype)
        torch.testing.assert_close(
            new[key].float(), exact.float(), rtol=torch.finfo(exact.dtype).eps, atol=1e-6
        )
        assert not torch.equal(new[key], old[key])
        assert all(torch.equal(new[other], value) for other, value in old.items() if other != key)
        changed.add(target / file)
    for copy in target.rglob("*"):
        if copy.is_file() and copy not in changed:
            assert copy.read_bytes() == (folder / copy.relative_to(target)).read_bytes()
    assert len(list(target.rglob("*"))) == len(list(folder.rglob("*")))
    with safe_open(target / "unet" / "model-0.safetensors", "pt") as opened:
        header = opened.metadata()
    parents = json.loads(header[LINEAGE])["parents"]
    assert [(p["name"], p["weight"]) for p in parents] == [("one", 1.0), ("two", 0.5)]
    assert header["format"] == "pt"
    with pytest.raises(UsageError, match="exists already"):
        fold_checkpoint(folder, target, adapters)
    with pytest.raises(BaseMismatchError, match="1 of 1 layers"):
        fold_checkpoint(folder, folder.parent / "x", [random_adapter({"unet.c": (4, 4)}, ("c",))])
    with pytest.raises(UsageError, match="does not exist"):
        fold_checkpoint(folder, folder / "x" / "y", adapters)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["new", "source"]


def test_an_interrupted_fold_leaves_nothing(folder: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fold_checkpoint(folder, folder.parent / "new", [for_folder(2, "one")], progress=stop)
    assert list(folder.parent.iterdir()) == [folder]
