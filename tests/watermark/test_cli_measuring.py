"""``loracomp watermark embed``, ``attack``, ``calibrate`` and ``vae`` from end to end at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from commandline import Run
from markcli import issue, noise, options, save_pictures

from loracomp.watermark.codec import Codec
from loracomp.watermark.networks import Shape

POOLED = Shape(4, 16, 32, 8, widths=(8, 8), blocks=(1, 1), bits=16, carriers="pooled")


def learned(base: Path, loracomp: Run, folder: Path) -> Path:
    """A LoRA that ``train run`` made for a base of one's own."""
    save_pictures(folder / "data", noise(4, 5))
    out = folder / "ink.safetensors"
    words = ["--kind", "style", "--name", "ink", "--base", base, "--steps", 1, "--batch", 2, "--rank", 2]
    sizes = ["--set", "resolution=32", "--set", "sample_count=0", "--device", "cpu", "--out", out]
    code, _, error = loracomp("train", "run", folder / "data", *words, *sizes)
    assert code == 0, error
    return out


def test_embed_then_attack(place: Path, base: Path, loracomp: Run, tmp_path: Path) -> None:
    key, out, twin = (
        issue(place, loracomp, "ink"),
        tmp_path / "marked.safetensors",
        learned(base, loracomp, tmp_path),
    )
    before, codec = twin.read_bytes(), [*options(place)[:2], "--base", base]
    words = ["--set", "steps=1", "--set", "batch=1", "--data", tmp_path / "data", "--device", "cpu"]
    code, text, error = loracomp(
        "watermark", "embed", twin, "--key", key, "--out", out, *codec, *words, "--json"
    )
    assert code == 0, error
    assert json.loads(text)["bytes"] == out.stat().st_size
    assert twin.read_bytes() == before
    assert loracomp("watermark", "inspect", out, "--trust", key.with_suffix(".pub"))[0] == 0
    assert out.read_bytes() != before

    table = tmp_path / "table.json"
    attack = ["watermark", "attack", out, "--key", key, "--twin", twin, *codec]
    few = ["--images", 1, "--steps", 1, "--device", "cpu", "--attack", "flip", "--attack", "embedding"]
    code, text, error = loracomp(*attack, *few, "--out", table, "--sign", "--json")
    assert code == 0, error
    report = json.loads(text)
    assert {row["attack"] for row in report["rows"]} == {"flip", "embedding"}
    assert report == json.loads(table.read_text())
    assert [row["strength"] for row in report["power"]] == sorted(row["strength"] for row in report["power"])
    code, text, _ = loracomp("watermark", "inspect", out, "--trust", key.with_suffix(".pub"), "--json")
    assert (code, "power" in text) == (0, True)

    code, _, error = loracomp(*attack, "--attack", "jpgg")
    assert (code, "unknown attack" in error, error.count("\n")) == (2, True, 1)
    code, _, error = loracomp(*attack, "--foreign-vae", tmp_path)
    assert (code, "config.json" in error) == (5, True)
    code, _, error = loracomp(*attack, "--surrogate", tmp_path / "none.safetensors")
    assert (code, "no codec" in error) == (5, True)


def test_calibrate(place: Path, base: Path, loracomp: Run, tmp_path: Path) -> None:
    real, out = tmp_path / "real", tmp_path / "c.safetensors"
    save_pictures(real, torch.cat([noise(1, seed) for seed in range(120)]))
    words = ["--out", out, "--real", real, "--images", 2, "--steps", 1, "--base", base]
    code, text, error = loracomp("watermark", "calibrate", *words, *options(place)[:2], "--json")
    assert code in (0, 1), error
    facts = json.loads(text)
    assert facts["populations"][:2] == ["real", "attacked"]
    assert facts["holds"] == (code == 0)
    assert out.exists()
    code, _, error = loracomp("watermark", "calibrate", "--out", out, "--real", tmp_path, *options(place)[:2])
    assert (code, "no pictures" in error) == (2, True)


def test_mark_a_decoder(place: Path, base: Path, loracomp: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    Codec.fresh(POOLED, "sd15").to("cpu").save(tmp_path / "pooled.safetensors")
    save_pictures(tmp_path / "pictures", noise(8, 4))
    key, out = issue(place, loracomp, "decoder"), tmp_path / "mark.safetensors"
    words = ["--key", key, "--out", out, "--base", base, "--codec", tmp_path / "pooled.safetensors"]
    few = ["--pictures", tmp_path / "pictures", "--steps", 2, "--batch", 2, "--device", "cpu"]
    code, text, error = loracomp("watermark", "vae", *words, *few, "--json")
    assert code == 0, error
    facts = json.loads(text)
    assert facts["bytes"] == out.stat().st_size
    assert facts["layers"] > 0
    assert facts["steps"] == 2
    (tmp_path / "none").mkdir()
    code, _, error = loracomp("watermark", "vae", *words, "--pictures", tmp_path / "none")
    assert (code != 0, "8 at least" in error) == (True, True)
