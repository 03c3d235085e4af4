"""``loracomp compose`` with curves, programs, variants and places in the image, on glyph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commandline import Run
from PIL import Image

from loracomp.fusion import Curve, Profile, Program
from loracomp.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("glyph_once")
QUICK = ("--steps", 2, "--seed", 7, "--size", 64)
PROMPT = "a watermelon emoji, mono style"
BOTH = ("--lora", "watermelon", "--lora", "mono")


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as file:
        image = file.convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def drawn(loracomp: Run, path: Path, *words: object, prompt: str = PROMPT) -> torch.Tensor:
    done = loracomp("compose", prompt, *words, *QUICK, "--out", path)
    assert done.code == 0, done.err
    return pixels(path)


def repeated(loracomp: Run, path: Path) -> bool:
    """Whether the image draws itself again, byte for byte."""
    again = path.with_name("again.png")
    assert loracomp("compose", "--from", path, "--out", again).code == 0
    return path.read_bytes() == again.read_bytes()


def test_curves_act_and_are_repeated(loracomp: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    late = drawn(loracomp, out, "--lora", "watermelon", "--lora", "mono:0.9@0.5..1:down=0.5:text=0.3")
    recipe = read_recipe(out)
    assert [use.weight for use in recipe.uses] == [1.0, 0.9]
    assert recipe.uses[1].settings == "0.9@0.5..:down=0.5:text=0.3"
    program = Program.from_json(json.dumps(recipe.programs[0]))
    profile = Profile(Curve(((0, 0), (0.5, 1))), {"down": 0.5}, text=0.3)
    assert program == Program("merge", (1.0, 0.9), profiles=(Profile(), profile))
    assert repeated(loracomp, out)
    tagged = f"{PROMPT} <lora:watermelon> <lora:mono:0.9@0.5..1:down=0.5:text=0.3>"
    assert torch.equal(drawn(loracomp, tmp_path / "b.png", prompt=tagged), late)
    assert not torch.equal(drawn(loracomp, tmp_path / "c.png", *BOTH), late)


def test_a_curve_over_the_whole_run_is_a_plain_weight(loracomp: Run, tmp_path: Path) -> None:
    plain = drawn(loracomp, tmp_path / "a.png", "--lora", "mono:0.8")
    assert torch.equal(drawn(loracomp, tmp_path / "b.png", "--lora", "mono:0.8@0..1"), plain)
    assert read_recipe(tmp_path / "b.png").programs == ()


def test_block_weights_of_other_programs_act(loracomp: Run, tmp_path: Path) -> None:
    presets = {
        name: drawn(loracomp, tmp_path / "a.png", "--lora", f"mono:1:lbw={name}") for name in ("ALL", "NONE")
    }
    assert torch.equal(presets["ALL"], drawn(loracomp, tmp_path / "b.png", "--lora", "mono"))
    assert torch.equal(presets["NONE"], drawn(loracomp, tmp_path / "b.png"))
    some = drawn(loracomp, tmp_path / "a.png", "--lora", "mono:1:lbw=OUTALL:stop=2")
    assert not any(torch.equal(some, other) for other in presets.values())
    assert repeated(loracomp, tmp_path / "a.png")


def test_a_program_from_a_file_draws_what_the_short_text_draws(loracomp: Run, tmp_path: Path) -> None:
    program = Program("switch", (1.0, 0.7), {"period": 0.5}, profiles=(Profile(), Profile(text=0.5)))
    file, out = tmp_path / "p.json", tmp_path / "a.png"
    file.write_text(program.to_json())
    ours = drawn(loracomp, out, *BOTH, "--program", file)
    method = ("--method", "switch", "--option", "period=0.5")
    program_of_file = read_recipe(out).programs
    file.unlink()
    assert repeated(loracomp, out)
    assert read_recipe(out).uses[1].weight == 0.7
    assert read_recipe(out).method == "switch"
    short = ("--lora", "watermelon", "--lora", "mono:0.35:0.7")
    assert torch.equal(drawn(loracomp, out, *short, *method), ours)
    assert read_recipe(out).programs == program_of_file


def test_a_batch_of_mixtures_is_the_single_runs(loracomp: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    vary = ("--vary", "weight=mono:0.5,1", "--vary", "method=merge,switch")
    done = loracomp("compose", PROMPT, *BOTH, *vary, *QUICK, "--out", out, "--json")
    files = [Path(image["file"]) for image in done.json["images"]]
    recipes = [read_recipe(file) for file in files]
    assert [(r.method, r.uses[1].weight) for r in recipes] == [
        ("merge", 0.5), ("switch", 0.5), ("merge", 1.0), ("switch", 1.0),
    ]  # fmt: skip
    for file, recipe in zip(files, recipes, strict=True):
        single = (
            "--lora",
            "watermelon",
            "--lora",
            f"mono:{recipe.uses[1].weight}",
            "--method",
            recipe.method,
        )
        alone = drawn(loracomp, tmp_path / "b.png", *single)
        assert (pixels(file).int() - alone.int()).abs().max() <= 1
    assert repeated(loracomp, files[2])
    assert len({file.read_bytes() for file in files}) == 4


def test_programs_may_differ_by_image(loracomp: Run, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    programs = [Program("merge", (0.0, 1.0)), Program("merge", (1.0, 0.0))]
    file.write_text(json.dumps([json.loads(program.to_json()) for program in programs]))
    done = loracomp("compose", PROMPT, *BOTH, "--program", file, *QUICK, "--out", tmp_path / "a.png")
    assert done.out.split() == [str(tmp_path / f"a-{n}.png") for n in (1, 2)]
    alone = drawn(loracomp, tmp_path / "b.png", "--lora", "mono")
    assert (pixels(tmp_path / "a-1.png").int() - alone.int()).abs().max() <= 1


def test_a_box_is_a_mask_and_both_are_repeated(loracomp: Run, tmp_path: Path) -> None:
    mask, out = tmp_path / "left.png", tmp_path / "a.png"
    picture = Image.new("L", (512, 512))
    picture.paste(255, (0, 0, 256, 512))
    picture.save(mask)
    masked = drawn(loracomp, out, *BOTH, "--mask", f"mono={mask}")
    mask.unlink()
    assert repeated(loracomp, out)
    assert len(read_recipe(out).uses[1].mask) < 2000
    for box in ("0,0,0.5,1", "0,0,32,64"):
        assert torch.equal(drawn(loracomp, out, *BOTH, "--box", f"mono={box}"), masked)
    assert repeated(loracomp, out)
    assert not torch.equal(drawn(loracomp, out, *BOTH), masked)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--lora", "mono:1@0..0.5,1@0.4..1"], 2, "range 0.4..1 overlaps another one (column 17)"),
        (["--lora", "mono:1:up.9=0"], 2, "no adapter changes a block 'up.9'; there are"),
        (["--lora", "mono:1:lbw=1,1"], 2, "2 numbers, where this base has 8 or 14 blocks"),
        (["--lora", "mono", "--vary", "weight=blobs:0,1"], 2, "known: mono"),
        (["--lora", "mono", "--vary", "weight=mono:0,1", "--batch", "3"], 2, "leave out --batch"),
        (["--vary", "method=merge,switch"], 2, "name them with --lora"),
        (["--lora", "mono", "--program", "no.json"], 4, "no.json: No such file"),
        (["--lora", "mono", "--program", "text.json"], 4, "text.json: no JSON"),
        (["--lora", "mono", "--program", "other.json"], 4, "other.json: not a gate program"),
        (["--lora", "mono", "--program", "empty.json"], 4, "an empty list"),
        (["--lora", "mono:0.5", "--program", "good.json"], 2, "write --lora mono alone"),
        (["--lora", "mono", "--program", "good.json", "--method", "switch"], 2, "leave out --method"),
        (["--lora", "mono", "--lora", "blobs", "--program", "good.json"], 2, "1 weights for 2 adapters"),
        (["--lora", "mono", "--mask", "mono=no.png"], 4, "no.png: no such mask"),
        (["--lora", "mono", "--mask", "mono=text.json"], 4, "text.json: not a readable picture"),
        (["--lora", "mono", "--mask", "mono"], 2, "write NAME=FILE.png"),
        (["--lora", "mono", "--mask", "blobs=no.png"], 2, "unknown adapter in --mask"),
        (["--lora", "mono", "--box", "mono=0,0,1"], 2, "is not LEFT,TOP,RIGHT,BOTTOM"),
        (["--lora", "mono", "--box", "mono=0,0,0,1"], 2, "needs left < right"),
        (["--lora", "mono", "--box", "mono=0,0,300,100"], 2, "outside the image of 64x64 pixels"),
        (["--lora", "mono:1:box=0,0,1,1", "--box", "mono=0,0,1,1"], 2, "has a place already"),
        (["--lora", "mono", "--base", "some-folder", "--box", "mono=0,0,9,9"], 2, "pixels need a --size"),
        (["--from", "a.png", "--box", "mono=0,0,1,1"], 2, "leave out box"),
    ],
)
def test_mixtures_that_mean_nothing_get_one_line(
    loracomp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"text": "a cat", "other": '{"a": 1}', "empty": "[]", "good": Program(weights=(1.0,)).to_json()}
    for name, text in texts.items():
        Path(f"{name}.json").write_text(text)
    size = [] if "--base" in arguments else ["--size", "64"]
    prompt = [] if "--from" in arguments else [PROMPT, "--steps", "2", *size]
    done = loracomp("compose", *prompt, *arguments, "--out", "out.png")
    assert done.code == code, done.err
    assert says in done.line
    assert not Path("out.png").exists()


@pytest.mark.parametrize("change", ["programs", "mask"])
def test_recipes_with_damaged_parts_are_refused(loracomp: Run, tmp_path: Path, change: str) -> None:
    from dataclasses import replace

    from loracomp.recipe import save_image

    out = tmp_path / "a.png"
    drawn(loracomp, out, "--lora", "mono@0.5..1")
    recipe = read_recipe(out)
    if change == "programs":
        recipe = replace(recipe, programs=({"method": 3},))
    else:
        recipe = replace(recipe, uses=(replace(recipe.uses[0], mask="bm8="),))
    save_image(Image.new("RGB", (8, 8)), out, recipe)
    done = loracomp("compose", "--from", out, "--out", tmp_path / "b.png")
    assert done.code == 4
    assert {"programs": "not a gate program", "mask": "no picture"}[change] in done.line
