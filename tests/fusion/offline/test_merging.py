"""Merging as a whole: what is reported, written, refused, and said of the parents."""

from __future__ import annotations

import json
import os
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_merges import SHAPES, adapter, deltas, dense, family, weighted
from tiny import layer_table, random_adapter, tiny_pipeline

from loracomp.adapter import Acceleration, Adapter
from loracomp.bases import modules
from loracomp.errors import BaseMismatchError, FormatError, LoracompError, UnknownNameError, UsageError
from loracomp.formats import inspect, load, save
from loracomp.formats.layerfile import LayerFile
from loracomp.formats.streaming import can_stream
from loracomp.fusion.offline import MERGES, carried_out, merge, merge_files, plan
from loracomp.fusion.offline.lineage import LINEAGE, MANIFESTS
from loracomp.lowrank import LowRank

WEIGHTS = [1.0, -0.6, 0.4]
ENDINGS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "layers.3.self_attn.q_proj",
    "down_blocks.0.resnets.0.conv1",
)


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three SD1.5 LoRAs of different ranks on a few linear, convolution and text-encoder layers."""
    folder = tmp_path_factory.mktemp("files")
    table = dict(modules("sd15"))
    adapters = [
        random_adapter(
            table, ENDINGS[: 2 + rank % 2], rank, 1.5 * rank, seed=rank, base="sd15", name=f"r{rank}"
        )
        for rank in (2, 3, 4)
    ]
    return [save(one, folder / f"{one.name}.safetensors") for one in adapters]


@pytest.mark.parametrize("method", MERGES)
def test_the_reported_errors_are_those_of_dense_matrices(method: str) -> None:
    settings: dict[str, Any] = {"samples": [1, 2, 5]} if MERGES[method].averages else {"weights": WEIGHTS}
    merged, report = carried_out(plan(family(), method=method, **settings))
    weights = [0.125, 0.25, 0.625] if MERGES[method].averages else WEIGHTS
    exact = {path: weighted(deltas(family(), path), weights) for path in SHAPES}
    gaps = {path: dense(merged, path) - exact[path] for path in SHAPES}
    for row in report.layers:
        norm = float(exact[row.path].norm())
        assert row.norm == pytest.approx(norm, rel=1e-5)
        assert row.size == pytest.approx(float(dense(merged, row.path).norm()) / norm, rel=1e-5)
        # What rounding does to a stack is added up as if parents were independent.
        loose = 0.3 if MERGES[method].stacks else 1e-4
        assert row.error == pytest.approx(float(gaps[row.path].norm()) / norm, rel=loose, abs=1e-15)
        assert row.rank == merged.layers[row.path].rank
    total = sum(float(value.square().sum()) for value in exact.values()) ** 0.5
    missed = sum(float(value.square().sum()) for value in gaps.values()) ** 0.5
    assert report.error == pytest.approx(missed / total, rel=loose, abs=1e-15)
    columns = [
        torch.cat([w * deltas(family(), p)[i].flatten() for p in SHAPES]) for i, w in enumerate(weights)
    ]
    flat = torch.cat([dense(merged, path).flatten() for path in SHAPES])
    expected = torch.linalg.lstsq(torch.stack(columns, 1), flat[:, None]).solution.flatten()
    assert report.kept == pytest.approx(expected.tolist(), rel=1e-4)


def test_what_is_kept_of_twins_and_of_nothing() -> None:
    one, two = family()[:2]
    report = carried_out(plan([one, one, two, two], [1.0, 0.5, 0.0, 1.0], "concat"))[1]
    assert report.kept[2] is None
    assert [share for share in report.kept if share is not None] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("method", ["concat", "fedsvd"])
def test_averages_of_clients_are_exact_where_averaged_factors_are_not(method: str) -> None:
    clients, samples = [adapter(seed, 4, 4.0) for seed in range(3)], [100, 300, 50]
    merged, report = carried_out(plan(clients, method=method, samples=samples))
    naive_missed = total = 0.0
    for path in SHAPES:
        exact = weighted(deltas(clients, path), [n / 450 for n in samples])
        assert float((dense(merged, path) - exact).norm()) <= 1e-6 * float(exact.norm())
        pairs = [client.layers[path].matrices() for client in clients]
        up = weighted([pair[0] for pair in pairs], [n / 450 for n in samples])
        down = weighted([pair[1] for pair in pairs], [n / 450 for n in samples])
        naive_missed += float((up @ down - exact).square().sum())
        total += float(exact.square().sum())
    assert report.error < 1e-6
    assert report.naive_error == pytest.approx((naive_missed / total) ** 0.5)
    assert report.naive_error is not None
    assert report.naive_error > 0.3


def test_parents_are_remembered() -> None:
    first = Adapter(
        family()[0].layers, "custom", "first", {"loracomp.watermark.manifest": "{1}", "ss_x": "y"}
    )
    words = {"modelspec.trigger_phrase": "mono style, ink", Acceleration.KEY: Acceleration(4).to_json()}
    second = Adapter(family()[1].layers, "custom", "second", words)
    once = merge([first, second], [1.0, 0.5], "svd", rank=3, seed=7, name="both")
    lineage = json.loads(once.metadata[LINEAGE])
    assert (lineage["operation"], lineage["method"], lineage["rank"], lineage["seed"]) == (
        "merge",
        "svd",
        3,
        7,
    )
    assert lineage["options"] == {"fair_ranks": True}
    assert [(p["name"], p["weight"]) for p in lineage["parents"]] == [("first", 1.0), ("second", 0.5)]
    hashes = [p["hash"] for p in lineage["parents"]]
    assert len(set(hashes)) == 2
    assert json.loads(once.metadata[MANIFESTS]) == [
        {"parent": hashes[0], "entries": {"loracomp.watermark.manifest": "{1}"}}
    ]
    assert once.trigger_words == ("mono style", "ink")
    assert once.accelerator == Acceleration(4)
    assert "ss_x" not in once.metadata
    marked = Adapter(once.layers, "custom", "both", {**once.metadata, "loracomp.watermark": "second mark"})
    twice = merge([marked, family()[2]], None, "concat")
    parent = json.loads(twice.metadata[LINEAGE])["parents"][0]
    assert parent["lineage"] == lineage
    kept = json.loads(twice.metadata[MANIFESTS])
    assert kept[0] == {"parent": parent["hash"], "entries": {"loracomp.watermark": "second mark"}}
    assert kept[1]["parent"] == hashes[0]


@pytest.mark.parametrize("text", ["{", "[]", "[1]", "3", "[" * 2000])
def test_broken_lineage_of_a_parent_is_left_out(text: str) -> None:
    parent = Adapter(family()[0].layers, "custom", "x", {LINEAGE: text, MANIFESTS: text})
    header = merge([parent], None, "concat").metadata
    assert "lineage" not in json.loads(header[LINEAGE])["parents"][0]
    assert MANIFESTS not in header


@pytest.mark.parametrize("dialect", ["auto", "diffusers", "peft", "diffusers-old"])
def test_streamed_files_are_what_would_be_saved(files: list[Path], tmp_path: Path, dialect: str) -> None:
    streamed, whole = tmp_path / "streamed.safetensors", tmp_path / "whole.safetensors"
    report = merge_files(files, streamed, WEIGHTS, "concat", dialect=dialect)
    merged, other = carried_out(plan([load(file) for file in files], WEIGHTS, "concat"))
    save(merged, whole, dialect=dialect)
    assert report == other
    here, there = inspect(streamed), inspect(whole)
    assert here.canonical_hash == there.canonical_hash
    assert here.metadata["sshs_model_hash"] == here.hashes["sshs_model_hash"]
    assert here.metadata[LINEAGE] == merged.metadata[LINEAGE]
    hashes = [parent["hash"] for parent in json.loads(here.metadata[LINEAGE])["parents"]]
    assert hashes == [inspect(file).canonical_hash for file in files]
    read = load(streamed)
    for path, layer in load(whole).layers.items():
        assert torch.equal(read.layers[path].delta(), layer.delta())
    without = tmp_path / "again.safetensors"
    merge_files(files, without, WEIGHTS, "concat", dialect=dialect)
    assert streamed.read_bytes() == without.read_bytes()


def test_asking_for_layers_reads_none(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with LayerFile(files[1]) as opened:

        def refuse(handle: int, windows: list[memoryview], place: int) -> int:
            raise AssertionError(f"read at {place}")

        monkeypatch.setattr(os, "preadv", refuse)
        assert all(path in opened.layers for path in list(opened.layers))
        assert "unet.nothing" not in opened.layers
        assert {opened.size(path)[1] for path in opened.layers} == {3}


def test_layers_are_read_as_whole_files_are(files: list[Path]) -> None:
    whole = load(files[1])
    with LayerFile(files[1]) as opened:
        assert (opened.base, opened.name, list(opened.layers)) == (whole.base, whole.name, list(whole.layers))
        for path, layer in opened.layers.items():
            assert torch.equal(layer.up, whole.layers[path].up)
            assert torch.equal(layer.down, whole.layers[path].down)
            assert layer.scale == whole.layers[path].scale
            assert opened.size(path) == (layer.weight_shape, layer.rank)
        assert opened.layers.get("unet.nothing") is None


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
@pytest.mark.parametrize("method", ["concat", "svd"])
def test_files_of_other_bases_merge_text_encoders_and_fused_layers(
    tmp_path: Path, kind: str, method: str
) -> None:
    table = layer_table(tiny_pipeline(kind))
    suffixes = ("to_q", "to_v", "q_proj", "conv1", "proj_in")
    generator = torch.Generator().manual_seed(1)

    def layers(rank: int) -> dict[str, LowRank]:
        return {
            path: LowRank(
                torch.randn((rank, *shape[1:]), generator=generator),
                torch.randn((shape[0], rank, *[1] * (len(shape) - 2)), generator=generator),
                2.0,
            )
            for path, shape in table.items()
            if path.endswith(suffixes)
        }

    adapters = [Adapter(layers(rank), "custom", f"r{rank}") for rank in (2, 3)]
    files = [
        save(one, tmp_path / f"{one.name}.safetensors", dialect="kohya", modules=table) for one in adapters
    ]
    target = tmp_path / "out.safetensors"
    settings: dict[str, Any] = {"rank": 5} if method == "svd" else {}
    report = merge_files(files, target, [1.0, 0.5], method, modules=table, dtype=torch.float32, **settings)
    merged = load(target, modules=table)
    assert report.error < 1e-5
    for path, layer in adapters[0].layers.items():
        exact = layer.delta() + 0.5 * adapters[1].layers[path].delta()
        torch.testing.assert_close(merged.layers[path].delta(), exact, atol=1e-4, rtol=1e-4)


def test_dialects_that_fuse_layers_cannot_be_streamed() -> None:
    fused = {"transformer.transformer_blocks.0.attn.to_q": None}
    assert not can_stream(fused, "flux", "kohya")
    assert can_stream(fused, "flux")
    assert can_stream({"unet.down_blocks.0.resnets.0.conv1": None}, "sdxl", "kohya")


def broken(value: float) -> Adapter:
    layers = dict(family()[0].layers)
    item = layers["unet.blocks.0.to_q"]
    up = item.up.clone()
    up[0, 0] = value
    return Adapter({**layers, "unet.blocks.0.to_q": LowRank(item.down, up, item.alpha)}, "custom", "broken")


MISSHAPEN = Adapter({"unet.blocks.0.to_q": LowRank(torch.ones(1, 3), torch.ones(14, 1))}, "custom")
CASES: list[tuple[dict[str, Any], type[LoracompError], str]] = [
    ({"adapters": []}, UsageError, "no adapters"),
    ({"adapters": [Adapter({}, "custom")]}, UsageError, "no layer"),
    ({"weights": [1.0]}, UsageError, "1 weights for 3 adapters"),
    ({"weights": [1.0, nan, 1.0]}, UsageError, "finite"),
    ({"weights": [1.0, inf, 1.0]}, UsageError, "finite"),
    ({"weights": [1.0, 1.0, 1.0], "samples": [1, 1, 1]}, UsageError, "one of them"),
    ({"samples": [1, -1, 2]}, UsageError, "sample counts"),
    ({"samples": [0, 0, 0]}, UsageError, "sample counts"),
    ({"method": "tie"}, UnknownNameError, "ties"),
    ({"method": "concat", "rank": 4}, UsageError, "keeps every rank"),
    ({"rank": 0}, UsageError, "at least rank 1"),
    ({"method": "ties", "densty": 0.5}, UsageError, "density"),
    ({"method": "ties", "density": "x"}, UsageError, "number"),
    ({"method": "svd", "fair_ranks": 3}, UsageError, "true or false"),
    ({"method": "ties", "density": 0.0}, UsageError, "outside"),
    ({"method": "dare", "density": 1.5}, UsageError, "outside"),
    ({"method": "della", "density": 0.9, "window": 0.5}, UsageError, "probabilities"),
    ({"method": "breadcrumbs", "density": 0.9, "outliers": 0.2}, UsageError, "outliers"),
    ({"method": "lion", "conflict": 2.0}, UsageError, "outside"),
    ({"adapters": [family()[0], broken(nan)]}, FormatError, "unet.blocks.0.to_q holds NaN"),
    ({"adapters": [broken(inf)]}, FormatError, "broken"),
    ({"adapters": [family()[0], Adapter(family()[1].layers, "sdxl", "other")]}, BaseMismatchError, "other"),
    ({"adapters": [family()[0], MISSHAPEN]}, BaseMismatchError, "shape"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "words"), CASES)
def test_what_cannot_be_merged_is_refused_in_one_line(
    change: dict[str, Any], kind: type[LoracompError], words: str
) -> None:
    settings: dict[str, Any] = {"adapters": family()} | change
    with pytest.raises(kind, match=words) as caught:
        merge(**settings)
    assert "\n" not in str(caught.value)


def test_an_interrupted_merge_leaves_the_old_file(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    for method in ("concat", "svd"):
        with pytest.raises(KeyboardInterrupt):
            merge_files(files, target, None, method, progress=stop)
        assert target.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("place", ["missing/out.safetensors", "."])
def test_targets_that_cannot_be_written_are_refused(files: list[Path], tmp_path: Path, place: str) -> None:
    for method in ("concat", "svd"):
        with pytest.raises(UsageError, match="cannot be written"):
            merge_files(files, tmp_path / place, None, method)


def test_values_that_do_not_fit_the_type_are_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="float16"):
        merge_files(files, tmp_path / "a.safetensors", [1e9] * 3, "concat", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
