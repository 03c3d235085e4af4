"""``loracomp merge`` and ``loracomp fold`` with real files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commandline import Run
from safetensors.torch import load_file, save_file
from tiny import random_adapter

from loracomp.bases import modules
from loracomp.formats import load, save
from loracomp.fusion.offline import MERGES
from loracomp.fusion.offline.checkpoint_names import places

ENDINGS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "layers.3.self_attn.q_proj",
    "down_blocks.0.resnets.0.conv1",
)


@pytest.fixture
def loras(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two SD1.5 LoRAs on a few linear, convolution and text-encoder layers."""
    folder = tmp_path_factory.mktemp("loras")
    table = dict(modules("sd15"))
    made = [
        random_adapter(table, ENDINGS, 3, 2.0, seed, name, "sd15") for seed, name in enumerate(("one", "two"))
    ]
    first, second = (save(one, folder / f"{one.name}.safetensors") for one in made)
    return first, second


@pytest.mark.parametrize("method", MERGES)
def test_two_adapters_become_one_file(
    loracomp: Run, loras: tuple[Path, Path], tmp_path: Path, method: str
) -> None:
    out = tmp_path / "both.safetensors"
    done = loracomp("merge", loras[0], f"{loras[1]}:0.5", "--method", method, "--out", out, "--json")
    assert done.code == 0, done.err
    facts = done.json
    assert (facts["file"], facts["method"], facts["base"]) == (str(out), method, "sd15")
    assert facts["adapters"] == ["one", "two"]
    assert len(facts["layers"]) == len(load(loras[1]).layers)
    merged = load(out)
    assert (merged.base, merged.metadata["ss_output_name"]) == ("sd15", "both")
    assert facts["rank"] == max(merged.ranks)
    assert (facts["naive_error"] is not None) == (method == "fedsvd")


def test_the_table_names_every_layer_and_the_totals(
    loracomp: Run, loras: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"
    words = ("merge", *loras, "--rank", 6, "--weights", "1,0.7", "--out", out)
    text = loracomp(*words).out
    assert all(path in text for path in load(loras[1]).layers)
    assert "relative error in total" in text
    assert "two      0.7" in text
    short = loracomp(*words, "--total").out
    assert "unet." not in short
    assert short.splitlines()[-1] == text.splitlines()[-1]


def test_sample_counts_average_and_show_what_naive_averaging_misses(
    loracomp: Run, loras: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ("merge", *loras, "--samples", "100,300", "--method", "concat")
    done = loracomp(*words, "--out", tmp_path / "a.safetensors", "--json").json
    assert done["weights"] == [0.25, 0.75]
    assert done["error"] < 1e-6 < 0.05 < done["naive_error"]
    text = loracomp(*words, "--out", tmp_path / "a.safetensors").out
    assert "averaging the factors instead would be off by" in text


def test_options_seeds_and_types_are_passed_on(
    loracomp: Run, loras: tuple[Path, Path], tmp_path: Path
) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    words = ("merge", *loras, "--method", "dare", "--option", "density=0.3", "--dtype", "float32")
    for file, seed in zip(files, (1, 1, 2), strict=True):
        assert loracomp(*words, "--seed", seed, "--name", "x", "--out", file).code == 0
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1] != contents[2]
    assert {str(layer.up.dtype) for layer in load(files[0]).layers.values()} == {"torch.float32"}


def test_what_is_wrong_is_said_in_one_line(loracomp: Run, loras: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    table = dict(modules("sdxl"))
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    other = save(random_adapter(table, (name,), base="sdxl"), tmp_path / "sdxl.safetensors")
    one, two = loras
    cases: list[tuple[tuple[object, ...], int, str]] = [
        ((one, other), 4, "made for Stable Diffusion XL, but the base is Stable Diffusion 1.5"),
        ((one, "nothing-like-it"), 2, "unknown adapter"),
        ((one, two, "--weights", "1"), 2, "1 weights for 2 adapters"),
        ((f"{one}:0.5", two, "--weights", "1,1"), 2, "more than one way"),
        ((one, "--weights", "x"), 2, "not a number"),
        ((one, "--method", "tie"), 2, "ties"),
        ((one, "--rank", "many"), 2, "rank"),
        ((one, "--option", "density"), 2, "NAME=VALUE"),
        ((one, "--dtype", "int8"), 2, "float16"),
        ((one, "--dialect", "nothing"), 2, "dialect"),
    ]
    for words, code, part in cases:
        done = loracomp("merge", *words, "--out", out)
        assert (done.code, part in done.line) == (code, True), done.err
    assert not out.exists()
    assert loracomp("merge", one, "--out", tmp_path / "no" / "a.safetensors").code == 2


def test_a_checkpoint_is_folded_into_a_new_file(
    loracomp: Run, loras: tuple[Path, Path], tmp_path: Path
) -> None:
    base, out = tmp_path / "base.safetensors", tmp_path / "new.safetensors"
    named = {piece.path: p.key for p in reversed([*places("sd15")]) for piece in p.module.pieces}
    layers = load(loras[0]).layers
    save_file({named[p]: torch.randn(layer.weight_shape).half() for p, layer in layers.items()}, base)
    done = loracomp("fold", loras[0], f"{loras[1]}:0.5", "--into", base, "--out", out, "--json")
    assert done.code == 0, done.err
    facts = done.json
    assert (facts["adapters"], facts["weights"]) == (["one", "two"], [1.0, 0.5])
    assert {row["path"] for row in facts["layers"]} == set(layers)
    assert 0 < facts["loss"] < 0.5
    assert load_file(out).keys() == load_file(base).keys()
    text = loracomp("fold", loras[0], "--into", base, "--out", out).out
    assert "lost to rounding" in text
    done = loracomp("fold", loras[0], "--into", loras[1], "--out", tmp_path / "x.safetensors")
    assert (done.code, "layers are not in" in done.line) == (4, True)


def test_ctrl_c_leaves_the_folder_as_it_was(loras: tuple[Path, Path], tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from loracomp.fusion.offline import merging\n"
        "kept = merging.Plan.layer\n"
        "def layer(self, site):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return kept(self, site)\n"
        "merging.Plan.layer = layer\n"
        "from loracomp.cli import main\n"
        "sys.argv = ['loracomp', 'merge', *sys.argv[2:], '--method', 'concat', '--out', sys.argv[1]]\n"
        "main()\n"
    )
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", script, out, *loras], capture_output=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr.decode().splitlines()[-1] == "loracomp: interrupted"
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]
