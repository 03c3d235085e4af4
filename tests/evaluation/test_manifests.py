"""No picture of an unseen subject in an unseen style was shown to anything that ships, but the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import loracomp
from loracomp.evaluation.artwork import read_names
from loracomp.training.glyph.packages import BASE_STYLES
from loracomp.training.glyph.splits import committed, denoiser_may_see, judge_held_out, unseen_subjects
from loracomp.training.glyph.subjects import Icon

PACKAGE = Path(loracomp.__file__).parent
EXAMPLES = PACKAGE.parent / "examples"
ADAPTERS = PACKAGE / "assets" / "adapters"
NAMES = read_names()


def leaks(cells: list[list[str]]) -> list[list[str]]:
    """Cells of an unseen subject in any style that is not one of the base's."""
    return [cell for cell in cells if cell[0] in NAMES.subjects and cell[1] not in BASE_STYLES]


def adapters() -> list[Path]:
    return sorted(ADAPTERS.glob("*.safetensors"))


def shipped() -> dict[str, dict[str, Any]]:
    path = ADAPTERS / "manifest.json"
    return dict(json.loads(path.read_text())["adapters"]) if path.is_file() else {}


def test_a_leak_would_be_found() -> None:
    assert leaks(
        [["watermelon", "mono"], ["watermelon", "pixel"], ["watermelon", "noto"], ["cat", "mono"]]
    ) == [
        ["watermelon", "mono"],
        ["watermelon", "pixel"],
    ]


def test_the_denoiser_sees_neither_unseen_subjects_nor_unseen_styles() -> None:
    for look in (*NAMES.looks, *BASE_STYLES):
        for slug in (*sorted(unseen_subjects()), "cat"):
            seen = denoiser_may_see(Icon(slug, look, ""))
            assert seen == (slug not in NAMES.subjects and look in BASE_STYLES)


@pytest.mark.parametrize("part", ["denoiser", "vae"])
def test_no_part_of_the_base_saw_the_truth(part: str) -> None:
    seen = committed("manifest.json.xz")[part]
    assert sum(map(len, seen.values())) > 1000
    assert not leaks([[slug, style] for style, slugs in seen.items() for slug in slugs])


def test_the_vae_saw_no_unseen_subject_at_all() -> None:
    """It paints filters over whatever it sees, and these pictures are in no list."""
    seen = committed("manifest.json.xz")["vae"]
    assert not {slug for slugs in seen.values() for slug in slugs} & unseen_subjects()


def test_the_manifest_of_the_base_names_every_part_that_is_trained() -> None:
    table = committed("manifest.json.xz")
    assert set(table) == {"vae", "denoiser", "judge"}
    assert set(table["denoiser"]) == set(BASE_STYLES)
    assert not {slug for slugs in table["denoiser"].values() for slug in slugs} & unseen_subjects()
    cells = {(slug, style) for style, slugs in table["judge"].items() for slug in slugs}
    assert not cells & judge_held_out()


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("manifest.json")), ids=lambda p: p.parent.name)
def test_examples_leak_nothing(path: Path) -> None:
    rows = json.loads(path.read_text())
    assert not leaks([[row["subject"], row["style"]] for row in rows])
    pictures = {file.name for file in path.parent.glob("*.png")}
    assert {row["file"] for row in rows} == pictures
    if path.parent.parent.name == "styles":
        assert not {row["subject"] for row in rows} & unseen_subjects()


def test_every_shipped_adapter_has_a_manifest_that_leaks_nothing() -> None:
    table = shipped()
    assert set(table) == {file.stem for file in adapters()}
    for name, entry in table.items():
        assert entry["cells"], name
        assert not leaks(entry["cells"]), name
        if entry["kind"] != "subject":
            assert not {cell[0] for cell in entry["cells"]} & unseen_subjects(), name


def test_shipped_files_say_the_same_as_the_manifest() -> None:
    table = shipped()
    for file in adapters():
        with safe_open(file, framework="pt") as opened:
            data = json.loads(opened.metadata()["loracomp.data"])
        assert sorted(data["cells"]) == sorted(table[file.stem]["cells"])


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "assets").rglob("manifest.json")), ids=lambda p: p.parent.name
)
def test_no_manifest_among_the_assets_leaks(path: Path) -> None:
    """Whatever else ships with a manifest of cells: bases, encoders, gates; only the judge may see all."""

    def cells(value: object) -> list[list[str]]:
        if isinstance(value, dict):
            own = [[value["subject"], value["style"]]] if {"subject", "style"} <= set(value) else []
            return own + [cell for item in value.values() for cell in cells(item)]
        if isinstance(value, list):
            pair = len(value) == 2 and all(isinstance(word, str) for word in value)
            return [value] if pair else [cell for item in value for cell in cells(item)]
        return []

    found = cells(json.loads(path.read_text()))
    assert path.parent.name == "judge" or not leaks(found)
