"""LoRAs for a base with an architecture of its own, from training to images, merges and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commandline import Run
from PIL import Image
from tiny import KINDS, layer_table, random_adapter, run, tiny_pipeline

from loracomp.errors import FormatError
from loracomp.formats import base_layers, load, save
from loracomp.fusion.effect import EffectCurve
from loracomp.library import open_adapter
from loracomp.lowrank import distance, norm
from loracomp.pipeline import attach, own_layers
from loracomp.pipeline.features import feature_cosines
from loracomp.plugin.composing import Composing, opened
from loracomp.recipe import read_recipe

QUICK = ("--steps", 2, "--seed", 7, "--size", 32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Stable Diffusion in a folder, whose layers have sizes that no known base has."""
    tiny_pipeline("sd15").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def trained(loracomp: Run, base: Path, tmp_path: Path) -> Path:
    """A LoRA that ``train run`` made on it, one that changes its pictures."""
    (tmp_path / "data").mkdir()
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), color).save(tmp_path / "data" / f"{number}.png")
        (tmp_path / "data" / f"{number}.txt").write_text(f"{color} paper")
    out = tmp_path / "paper.safetensors"
    settings = ("--set", "resolution=32", "--set", "sample_count=0", "--set", "lr=0.1")
    done = loracomp(
        "train", "run", tmp_path / "data", "--kind", "style", "--name", "paper", "--base", base, "--out", out,
        "--steps", 4, "--batch", 2, "--rank", 2, "--device", "cpu", *settings,
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as file:
        image = file.convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()


def test_compose_draws_with_what_was_trained(
    loracomp: Run, base: Path, trained: Path, tmp_path: Path
) -> None:
    images = {}
    for weight in (0, 1):
        images[weight] = tmp_path / f"{weight}.png"
        words = ("--lora", f"{trained}:{weight}", "--base", base, *QUICK, "--out", images[weight])
        done = loracomp("compose", "paper", *words)
        assert done.code == 0, done.err
    plain = tmp_path / "plain.png"
    assert loracomp("compose", "paper", "--base", base, *QUICK, "--out", plain).code == 0
    assert torch.equal(pixels(images[0]), pixels(plain))
    assert not torch.equal(pixels(images[1]), pixels(plain))
    again = tmp_path / "again.png"
    assert loracomp("compose", "--from", images[1], "--out", again).code == 0
    assert torch.equal(pixels(images[1]), pixels(again))
    assert read_recipe(images[1]).uses[0].name == "paper"


def test_doctor_convert_and_merge_know_the_layers_in_the_folder(
    loracomp: Run, base: Path, trained: Path, tmp_path: Path
) -> None:
    assert loracomp("doctor", trained).code == 4
    seen = loracomp("doctor", trained, "--base", base, "--json")
    assert seen.code == 0, seen.err
    report = seen.json["files"][0]["report"]
    assert seen.json["complete"] and report["base"] == "custom" and not report["unmatched"]
    table = layer_table(tiny_pipeline("sd15"))
    first = load(trained, modules=table)
    assert {row["path"] for row in report["rows"]} == set(first.layers)

    out = tmp_path / "peft.safetensors"
    done = loracomp("convert", trained, out, "--base", base, "--dialect", "peft", "--json")
    assert done.code == 0, done.err
    twin = load(out, modules=table)
    for path, layer in first.layers.items():
        assert distance(layer, twin.layers[path]) <= 1e-5 * norm(layer)

    merged = tmp_path / "merged.safetensors"
    done = loracomp("merge", trained, out, "--weights", "0.5,1", "--base", base, "--out", merged, "--json")
    assert done.code == 0, done.err
    both = load(merged, modules=table)
    for path, layer in first.layers.items():
        assert distance(layer.scaled(1.5), both.layers[path]) <= 1e-3 * norm(layer)


def test_profile_and_diagnose_know_the_layers_in_the_folder(
    loracomp: Run, base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACOMP_CACHE", str(tmp_path / "cache"))
    table = layer_table(tiny_pipeline("sd15"))
    other = save(random_adapter(table, size=0.3), tmp_path / "other.safetensors", modules=table)
    quick = ("--steps", 2, "--seeds", 2, "--prompt", "{words} paper")
    done = loracomp("profile", trained, other, "--base", base, "--effect", *quick, "--json")
    assert done.code == 0, done.err
    known = json.loads(done.out)["adapters"]
    assert [one["name"] for one in known] == ["paper", "other"]
    assert all(one["effect"] and one["frequency"] for one in known)
    assert len(list(tmp_path.glob("*.measured.json"))) == 2

    reports = {}
    for features in ("--features", "--no-features"):
        words = (f"{trained}:0.5", other, "--base", base, features, "--json")
        done = loracomp("diagnose", *words)
        assert done.code == 0, done.err
        reports[features] = json.loads(done.out)
        assert reports[features]["weights"] == [0.5, 1.0]
        assert reports[features]["bands"] == [one["frequency"]["band"] for one in known]
    pipe = tiny_pipeline("sd15")
    cosines = feature_cosines(pipe, [load(file, modules=table) for file in (trained, other)])
    seen = [block["features"][0] for block in reports["--features"]["blocks"] if block["features"][0]]
    assert seen and cosines and all(0 < value <= 1 for value in seen)
    assert all(block["features"] is None for block in reports["--no-features"]["blocks"])

    drawing = ("compose", "paper", "--lora", other, "--base", base, "--strength", 0.5, *QUICK)
    done = loracomp(*drawing, "--out", tmp_path / "half.png", "--json")
    assert done.code == 0, done.err
    weight = json.loads(done.out)["images"][0]["recipe"]["uses"][0]["weight"]
    curve = EffectCurve.from_parts(known[1]["effect"])
    assert weight == pytest.approx(curve.share(0.5, 1.0), abs=1e-4)


def test_profile_and_diagnose_refuse_what_does_not_fit(
    loracomp: Run, base: Path, trained: Path, tmp_path: Path
) -> None:
    table = layer_table(tiny_pipeline("sd3"))
    other = save(random_adapter(table), tmp_path / "other.safetensors", modules=table)
    for words in (("profile", other), ("diagnose", trained, other), ("diagnose", trained, "mono")):
        for more in ((), ("--no-features",)) if words[0] == "diagnose" else ((),):
            done = loracomp(*words, "--base", base, *more)
            assert done.code == 4 and done.line.count("\n") == 0, done.err
    assert loracomp("profile", trained).code == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_custom_pipeline_opens_files_of_its_own_architecture(kind: str, tmp_path: Path) -> None:
    plain = tiny_pipeline(kind)
    table = layer_table(plain)
    files = [
        save(random_adapter(table, seed=seed, size=0.3), tmp_path / f"{seed}.safetensors", modules=table)
        for seed in (1, 2)
    ]
    pipe = type("Own", (Composing, type(plain)), {})(**plain.components)
    pipe.set_progress_bar_config(disable=True)
    ready = [open_adapter(str(file), modules=own_layers(pipe)) for file in files]
    with attach(pipe, ready, "merge", [1.0, 0.5]):
        expected = run(pipe, num_inference_steps=2)
    drawn = run(pipe, num_inference_steps=2, adapters=[str(files[0]), f"{files[1]}:0.5"])
    torch.testing.assert_close(drawn, expected)
    assert not torch.allclose(drawn, run(pipe, num_inference_steps=2), atol=1e-3)


def test_a_modular_pipeline_opens_files_of_its_own_architecture(tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLAutoBlocks

    tiny = tiny_pipeline("sdxl")
    table = layer_table(tiny)
    file = save(random_adapter(table, ("to_q",)), tmp_path / "own.safetensors", modules=table)
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {name: part for name, part in tiny.components.items() if name in pipe.components}
    pipe.update_components(**{name: part for name, part in parts.items() if part is not None})
    (found,), _ = opened(pipe, [str(file)], "merge")
    assert found.layers.keys() == {path for path in table if path.endswith("to_q")}
    with pytest.raises(FormatError):
        open_adapter(str(file))


def test_a_lora_of_another_architecture_is_refused(loracomp: Run, base: Path, tmp_path: Path) -> None:
    other = layer_table(tiny_pipeline("sd3"))
    file = save(random_adapter(other), tmp_path / "other.safetensors", modules=other)
    done = loracomp("compose", "a cat", "--lora", file, "--base", base, *QUICK, "--out", tmp_path / "a.png")
    assert done.code == 4 and "other" in done.line
    assert loracomp("doctor", file, "--base", base).code == 4


@pytest.mark.parametrize("kind", KINDS)
def test_headers_alone_tell_the_layers(kind: str, tmp_path: Path) -> None:
    pipe = tiny_pipeline(kind)
    pipe.save_pretrained(tmp_path / kind)
    name, table = base_layers(str(tmp_path / kind))
    assert name is None and table == layer_table(pipe)


def test_names_stay_names() -> None:
    assert base_layers("sdxl") == ("sdxl", None)
    assert base_layers(None) == (None, None)
    assert base_layers("nothing-of-that-name") == ("nothing-of-that-name", None)
