"""Recipes, prompts and weights: round trips, and strangers' bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loracomp.errors import FormatError, UsageError
from loracomp.recipe import Recipe, Use, parse_use, read_recipe, save_image

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
uses = st.builds(Use, texts, numbers, texts, texts, texts, texts, texts)
recipes = st.builds(
    Recipe,
    texts,
    negative=texts,
    uses=st.lists(uses, max_size=3).map(tuple),
    options=st.dictionaries(texts, st.one_of(numbers, texts, st.booleans())),
    programs=st.lists(st.dictionaries(texts, st.lists(numbers, max_size=2)), max_size=2).map(tuple),
    guidance=numbers,
    seed=st.integers(0, 2**63),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
)


@given(recipes)
@settings(deadline=None)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.infotext().startswith(recipe.prompt)


@given(texts | values.map(json.dumps))
@settings(deadline=None)
def test_strange_recipes_are_refused_in_one_way(text: str) -> None:
    with pytest.raises(FormatError):
        Recipe.from_json(text)


@given(st.sampled_from(sorted(asdict(Recipe("a")))), values)
@settings(deadline=None)
def test_a_field_of_the_wrong_type_is_refused_or_harmless(name: str, value: object) -> None:
    text = json.dumps(asdict(Recipe("a")) | {name: value})
    try:
        recipe = Recipe.from_json(text)
    except FormatError:
        return
    assert isinstance(recipe.infotext(), str)


@pytest.mark.parametrize("prompt", ["plain", "ünïcode 猫", "two\nlines"])
def test_an_image_carries_its_recipe(tmp_path: Path, prompt: str) -> None:
    recipe = replace(Recipe(prompt), uses=(Use("x", -0.5, "x", "d", "h"),))
    save_image(Image.new("RGB", (4, 4)), tmp_path / "a.png", recipe)
    assert read_recipe(tmp_path / "a.png") == recipe
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"] == recipe.infotext()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_bytes_that_are_no_image_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.png"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        read_recipe(path)


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        save_image(Image.new("RGB", (4, 4)), tmp_path / "no" / "a.png", Recipe("a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("mono", Use("mono")),
        ("mono:0.8", Use("mono", 0.8)),
        ("dir/mono.safetensors:-1", Use("dir/mono.safetensors", -1.0)),
        ("C:\\loras\\mono.safetensors", Use("C:\\loras\\mono.safetensors")),
    ],
)
def test_adapters_are_named_with_a_weight(text: str, use: Use) -> None:
    assert parse_use(text) == use


def test_images_of_different_programs_start_from_the_same_noise() -> None:
    batch = replace(Recipe("a"), seed=7, batch=3)
    assert batch.seeds == (7, 8, 9)
    mixed = replace(batch, programs=({"method": "merge"},) * 3, index=2)
    assert mixed.seeds == (7, 7, 7)
    assert "Seed: 7," in mixed.infotext()
