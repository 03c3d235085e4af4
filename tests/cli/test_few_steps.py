"""``compose --accelerator`` end to end on glyph."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import Run
from PIL import Image
from tiny import random_adapter

from loracomp import formats
from loracomp.adapter import Acceleration
from loracomp.bases import modules
from loracomp.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("glyph_once")
PROMPT = "a red apple emoji"


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    """A random adapter for glyph that says it is an accelerator for 3 steps."""
    adapter = random_adapter(dict(modules("glyph")), ("to_q", "to_v"), name="fast", base="glyph")
    out = tmp_path / "fast.safetensors"
    formats.save(adapter, out, metadata={Acceleration.KEY: Acceleration(3).to_json()})
    return out


def test_it_brings_its_steps_and_guidance_and_the_image_repeats(
    loracomp: Run, tmp_path: Path, fast: Path
) -> None:
    out, again = tmp_path / "a.png", tmp_path / "again.png"
    words = ("compose", PROMPT, "--lora", "mono:0.9", "--seed", 3, "--method", "switch")
    assert loracomp(*words, "--accelerator", fast, "--out", out).code == 0
    recipe = read_recipe(out)
    assert (recipe.steps, recipe.guidance, recipe.guidance_rescale) == (3, 1.0, 0.0)
    assert [(use.name, use.weight) for use in recipe.uses] == [("mono", 0.9), ("fast", 1.0)]
    assert loracomp("compose", "--from", out, "--out", again).code == 0
    pixels = [Image.open(path).tobytes() for path in (out, again)]
    assert pixels[0] == pixels[1]
    first = tmp_path / "first.png"
    assert loracomp(*words[:2], "--lora", fast, *words[2:], "--out", first).code == 0
    assert read_recipe(first).steps == 3
    alone = tmp_path / "alone.png"
    assert loracomp(*words, "--steps", 3, "--guidance", 1, "--out", alone).code == 0
    assert Image.open(alone).tobytes() != pixels[0]


def test_what_is_given_wins(loracomp: Run, tmp_path: Path, fast: Path) -> None:
    out = tmp_path / "a.png"
    more = ("--steps", 2, "--guidance", 1.5, "--seed", 0)
    assert loracomp("compose", PROMPT, "--accelerator", f"{fast}:0.5", *more, "--out", out).code == 0
    recipe = read_recipe(out)
    assert (recipe.steps, recipe.guidance, recipe.uses[0].weight) == (2, 1.5, 0.5)


def test_other_adapters_are_none(loracomp: Run, tmp_path: Path, fast: Path) -> None:
    out = tmp_path / "a.png"
    done = loracomp("compose", PROMPT, "--accelerator", "mono", "--out", out)
    assert done.code == 2
    assert "no accelerator" in done.line
    done = loracomp("compose", PROMPT, "--accelerator", "nothing", "--out", out)
    assert "nothing" in done.line
    fast.write_bytes(fast.read_bytes()[:100])
    assert loracomp("compose", PROMPT, "--accelerator", fast, "--out", out).code == 4
    assert loracomp("compose", "--from", out, "--accelerator", fast, "--out", out).code == 2
    assert not out.exists()
