"""Shipped adapters: what they saw, what they weigh, and the target that makes them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from loracomp import formats, library
from loracomp.errors import TrainingError, UnknownNameError
from loracomp.training.glyph.splits import unseen_subjects
from loracomp.training.shipped import LARGEST, check_cells, command, items, make, settings

SHIPPED = sorted(library.manifest())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_adapters_saw_only_what_they_may(name: str) -> None:
    entry = library.manifest()[name]
    check_cells(entry["kind"], entry["cells"])
    adapter = formats.load(library.find(name), base=entry["base"])
    assert json.loads(adapter.metadata["loracomp.data"])["cells"] == entry["cells"]
    assert ", ".join(adapter.trigger_words) == entry["trigger"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_manifest_says_how_each_was_made(name: str) -> None:
    item = items()[name]
    done = json.loads(formats.load(library.find(name)).metadata["loracomp.config"])
    told = json.loads(settings(item).dump())
    assert {key: done[key] for key in ("name", "kind", "steps", "lr", "batch", "rank", "seed")} == {
        key: told[key] for key in ("name", "kind", "steps", "lr", "batch", "rank", "seed")
    }
    assert library.manifest()[name]["command"] == command(item, settings(item))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_light(name: str) -> None:
    file = library.find(name)
    assert file.stat().st_size <= LARGEST[items()[name].kind]
    assert file.with_suffix(".png").stat().st_size < 40_000


def test_cells_that_would_spoil_the_measurement_are_refused() -> None:
    check_cells("subject", [("watermelon", "noto"), ("watermelon", "flat")])
    check_cells("style", [("dove", "mono")])
    with pytest.raises(TrainingError, match="subject adapter saw watermelon in mono"):
        check_cells("subject", [("watermelon", "noto"), ("watermelon", "mono")])
    with pytest.raises(TrainingError, match="unseen subject watermelon in mono"):
        check_cells("style", [("dove", "mono"), ("watermelon", "mono")])
    with pytest.raises(TrainingError, match="no manifest"):
        check_cells("style", [])
    check_cells("accelerator", [("dove", "noto")])
    with pytest.raises(TrainingError, match="accelerator adapter saw dove in mono"):
        check_cells("accelerator", [("dove", "mono")])
    with pytest.raises(TrainingError, match="accelerator adapter saw the unseen subject watermelon in noto"):
        check_cells("accelerator", [("watermelon", "noto")])


def test_items_are_four_styles_and_four_unseen_subjects() -> None:
    made = items().values()
    names = {kind: {item.name for item in made if item.kind == kind} for kind in ("style", "subject")}
    assert len(names["style"]) >= 4
    assert len(names["subject"]) >= 4
    assert names["subject"] <= unseen_subjects()
    assert {"mono"} <= names["style"]
    assert {"watermelon"} <= names["subject"]


def test_missing_data_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean mono"):
        make(tmp_path, tmp_path / "out", ["momo"])


def test_command_parses_to_the_same_config() -> None:
    item = items()["light-bulb"]
    config = settings(item)
    words = shlex.split(command(item, config))
    values = dict(zip(words[4::2], words[5::2], strict=True))
    assert values["--trigger"] == item.trigger
    assert values["--kind"] == "subject"
    assert values["--steps"] == str(config.steps)
    assert words[:3] == ["loracomp", "train", "run"]
    assert words[3].endswith("adapters/subjects/light-bulb")
