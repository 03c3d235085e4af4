"""``loracomp compose`` end to end on glyph, with the adapters that ship."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commandline import Run
from PIL import Image, PngImagePlugin
from tiny import random_adapter, tiny_pipeline

from loracomp.bases import modules
from loracomp.fusion.gated import usable
from loracomp.library import find
from loracomp.lowrank import LowRank
from loracomp.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("glyph_once")
QUICK = ("--steps", 3, "--seed", 7)
SMALL = (*QUICK, "--size", 64)
PROMPT = "a watermelon emoji, mono style"


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as file:
        image = file.convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


@pytest.mark.parametrize("method", usable())
def test_two_adapters_make_one_image(loracomp: Run, tmp_path: Path, method: str) -> None:
    out = tmp_path / "a.png"
    both = ("--lora", "watermelon", "--lora", "mono:0.9", "--method", method)
    done = loracomp("compose", PROMPT, *both, *SMALL, "--out", out)
    assert (done.code, done.out.strip()) == (0, str(out))
    recipe = read_recipe(out)
    assert [(use.name, use.weight) for use in recipe.uses] == [("watermelon", 1.0), ("mono", 0.9)]
    assert (recipe.method, recipe.seed, recipe.steps, recipe.width) == (method, 7, 3, 64)
    plain = tmp_path / "plain.png"
    assert loracomp("compose", PROMPT, *SMALL, "--out", plain).code == 0
    assert not torch.equal(pixels(out), pixels(plain))


def test_an_image_repeats_itself_bit_for_bit(loracomp: Run, tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    words = (
        "a watermelon <lora:watermelon> emoji <lora:mono:-0.5>",
        "--negative",
        "blue",
        "--method",
        "switch",
    )
    more = ("--option", "period=0.5", "--guidance", 2.5, "--guidance-rescale", 0.3, "--batch", 2)
    done = loracomp("compose", *words, *more, *SMALL, "--scheduler", "euler", "--out", first, "--json")
    files = [image["file"] for image in done.json["images"]]
    assert files == [str(tmp_path / "first-1.png"), str(tmp_path / "first-2.png")]
    assert not torch.equal(*map(pixels, map(Path, files)))
    assert loracomp("compose", "--from", files[1], "--out", again).code == 0
    assert Path(files[1]).read_bytes() == again.read_bytes()


def test_weight_zero_draws_what_the_base_draws(loracomp: Run, tmp_path: Path) -> None:
    paths = [tmp_path / "zero.png", tmp_path / "base.png"]
    loracomp("compose", PROMPT, "--lora", "mono:0", *SMALL, "--out", paths[0])
    loracomp("compose", PROMPT, *SMALL, "--out", paths[1])
    assert torch.equal(*map(pixels, paths))


def test_the_infotext_is_what_other_tools_read(loracomp: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    loracomp("compose", PROMPT, "--lora", "mono:0.8", "--negative", "blue", *QUICK, "--out", out)
    with Image.open(out) as image:
        lines = image.info["parameters"].splitlines()
    assert lines[0] == f"{PROMPT} <lora:mono:0.8>"
    assert lines[1] == "Negative prompt: blue"
    fields = dict(part.split(": ", 1) for part in lines[2].split(", "))
    assert (fields["Steps"], fields["Seed"], fields["Size"]) == ("3", "7", "128x128")
    header = loracomp("inspect", "mono", "--json").json
    assert fields["Lora hashes"] == f'"mono: {header["hashes"]["autov3"]}"'


def test_a_diffusers_folder_is_a_base(loracomp: Run, tmp_path: Path) -> None:
    tiny_pipeline("sd15").save_pretrained(tmp_path / "tiny")
    out = tmp_path / "a.png"
    done = loracomp("compose", "a cat", "--base", tmp_path / "tiny", *QUICK, "--size", 32, "--out", out)
    assert done.code == 0, done.err
    assert pixels(out).shape == (32, 32, 3)
    refused = loracomp(
        "compose", "a cat", "--lora", "mono", "--base", tmp_path / "tiny", *QUICK, "--size", 32, "--out", out
    )
    assert refused.code == 4
    assert "mono: made for glyph" in refused.line


def damaged(tmp_path: Path, how: str) -> Path:
    """A LoRA file that is broken in one way."""
    from safetensors.torch import load_file, save_file

    good = find("mono").read_bytes()
    path = tmp_path / "bad.safetensors"
    if how == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "page":
        path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    elif how == "bomb":
        path.write_bytes((1 << 62).to_bytes(8, "little") + good[8:])
    elif how == "pickle":
        torch.save({"a": torch.zeros(2)}, path := tmp_path / "bad.ckpt")
    elif how == "nan":
        tensors = load_file(find("mono"))
        next(iter(tensors.values())).fill_(float("nan"))
        save_file(tensors, path)
    elif how == "sd15":
        import loracomp

        adapter = random_adapter(dict(modules("sd15")), ("attn1.to_q",), base="sd15", name="bad")
        loracomp.save(adapter, path)
    return path


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "bad.safetensors: "),
        ("empty", "bad.safetensors: "),
        ("page", "bad.safetensors: "),
        ("bomb", "bad.safetensors: "),
        ("pickle", "pickle"),
        ("nan", "NaN"),
        ("sd15", "made for Stable Diffusion 1.5, but the base is glyph"),
    ],
)
def test_bad_files_get_one_line(loracomp: Run, tmp_path: Path, how: str, says: str) -> None:
    done = loracomp("compose", PROMPT, "--lora", damaged(tmp_path, how), *QUICK, "--out", tmp_path / "a.png")
    assert done.code == 4
    assert says in done.line
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a cat", "--lora", "watermelom"], 2, "did you mean watermelon?"),
        (["a cat", "--lora", "mono:strong"], 2, "weight 'strong' is not a number"),
        (["a cat <lora:mono:x>"], 2, "weight 'x' is not a number"),
        (["a cat", "--lora", "mono:nan"], 2, "weight 'nan' is not a number"),
        (["a cat", "--lora", "no/such.safetensors"], 4, "no such file"),
        (["a cat", "--method", "swich"], 2, "did you mean switch"),
        (["a cat", "--scheduler", "eulr"], 2, "did you mean euler"),
        (["a cat", "--lora", "mono", "--method", "switch", "--option", "period=3"], 2, "outside (0, 1]"),
        (["a cat", "--lora", "mono", "--option", "wobble=3"], 2, "wobble"),
        (["a cat", "--option", "period"], 2, "write NAME=VALUE"),
        (["a cat", "--base", "no-such-base"], 5, "no such base"),
        (["a cat", "--base", "nobody/nothing-here"], 5, "not in the local cache"),
        (["a cat", "--size", "wide"], 2, "write WIDTHxHEIGHT"),
        (["a cat", "--size", "100x30"], 2, "multiple of 8"),
        (["a cat", "--steps", "0"], 2, "--steps 0 is outside"),
        (["a cat", "--seed", str(2**70)], 2, "--seed"),
        (["a cat", "--device", "toaster"], 2, "toaster"),
        (["a cat", "--device", "cpu", "--offload", "model"], 2, "needs a GPU"),
        (["a cat", "--dtype", "fp7"], 2, "unknown dtype"),
        (["a cat", "--out", "no/such/folder/a.png"], 2, "does not exist"),
        (["--from", "nothing.png"], 4, "nothing.png: not a readable image"),
        ([""], 2, "no prompt"),
    ],
)
def test_bad_requests_get_one_line(
    loracomp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    few = () if {"--steps", "--from"} & set(arguments) else ("--steps", 2)
    done = loracomp("compose", *arguments, *few)
    assert done.code == code, done.err
    assert says in done.line
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loracomp", "compose", "a cat", "--steps", "900", "--seed", "1"]
    run = subprocess.Popen([*command, "--out", "a.png"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    first = run.stderr.readline()
    run.send_signal(signal.SIGINT)
    rest = run.stderr.read()
    run.stderr.close()
    assert run.wait() == 130
    assert first.startswith("composing: step")
    assert rest.splitlines()[-1] == "loracomp: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_errors_are_objects_on_demand(loracomp: Run) -> None:
    done = loracomp("compose", "a cat", "--lora", "watermelom", "--json")
    assert json.loads(done.err) == {"error": json.loads(done.err)["error"], "exit_code": 2}


def test_a_changed_adapter_is_not_repeated_in_silence(loracomp: Run, tmp_path: Path) -> None:
    import loracomp as package

    adapter = random_adapter(dict(modules("glyph")), ("to_q",), base="glyph", name="mine")
    file, out = tmp_path / "mine.safetensors", tmp_path / "a.png"
    package.save(adapter, file)
    assert loracomp("compose", "a cat", "--lora", file, *SMALL, "--out", out).code == 0
    package.save(adapter.map(lambda layer: LowRank(layer.down * 2, layer.up)), file)
    done = loracomp("compose", "--from", out, "--out", tmp_path / "b.png")
    assert done.code == 4
    assert "not the adapter this image was drawn with" in done.line


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"uses": 3}', '{"uses": [{"x": 1}]}', "\x00"])
def test_forged_recipes_are_refused(loracomp: Run, tmp_path: Path, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("loracomp", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "forged.png", pnginfo=info)
    done = loracomp("compose", "--from", tmp_path / "forged.png", "--out", tmp_path / "b.png")
    assert done.code == 4
    assert "forged.png" in done.line
