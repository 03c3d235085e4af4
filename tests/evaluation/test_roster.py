"""Rosters: what a folder of adapters is good for, told by names, manifests and headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluation.world import NAMES
from safetensors.torch import save_file

from loracomp.errors import FormatError, UsageError
from loracomp.evaluation.roster import read_roster


def write(folder: Path, stem: str, trigger: str = "", cells: list[list[str]] | None = None) -> None:
    header = {"modelspec.trigger_phrase": trigger, "loracomp.data": json.dumps({"cells": cells or []})}
    save_file({"x": torch.zeros(1)}, folder / f"{stem}.safetensors", header)


def test_adapters_are_known_by_name_and_by_what_they_saw(tmp_path: Path) -> None:
    write(tmp_path, "thing-1")
    write(tmp_path, "mono")
    write(tmp_path, "pixel")
    write(tmp_path, "green-background")
    write(tmp_path, "one", cells=[["thing-2", "noto"], ["thing-2", "flat"]])
    write(tmp_path, "two", cells=[["cat", "blobs"], ["dog", "blobs"]])
    write(tmp_path, "accelerator", cells=[["cat", "noto"], ["dog", "flat"]])
    assert set(read_roster(tmp_path, NAMES).members) == {
        ("subject", "thing-1"),
        ("subject", "thing-2"),
        ("style", "mono"),
        ("style", "blobs"),
        ("filter", "pixel"),
        ("background", "green"),
    }


def test_triggers_are_said_once(tmp_path: Path) -> None:
    write(tmp_path, "thing-1", "sks")
    write(tmp_path, "thing-2", "sks thing 2, another")
    write(tmp_path, "mono", "mono")
    write(tmp_path, "pixel", "pixel style")
    roster = read_roster(tmp_path, NAMES)
    say = roster.say(roster.members)
    assert say("subject", "thing-1") == "sks thing 1"
    assert say("subject", "thing-2") == "sks thing 2"
    assert say("subject", "thing-3") == "thing 3"
    assert say("style", "mono") == "mono style"
    assert say("filter", "pixel") == "pixel style"
    assert say("background", "green") == "green background"


def test_the_trigger_of_an_adapter_that_takes_no_part_is_not_said(tmp_path: Path) -> None:
    write(tmp_path, "green-background", "green backdrop")
    roster = read_roster(tmp_path, NAMES)
    assert roster.say([("background", "green")])("background", "green") == "green backdrop"
    assert roster.say([("style", "mono")])("background", "green") == "green background"


def test_the_manifest_of_a_folder_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "odd", "old", cells=[["thing-1", "noto"]])
    entry = {"trigger": "new", "cells": [["thing-3", "noto"]]}
    (tmp_path / "manifest.json").write_text(json.dumps({"adapters": {"odd": entry}}))
    roster = read_roster(tmp_path, NAMES)
    assert set(roster.members) == {("subject", "thing-3")}
    assert roster.say(roster.members)("subject", "thing-3") == "new thing 3"


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_roster(tmp_path / "none", NAMES)
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    with pytest.raises(FormatError, match=r"bad\.safetensors"):
        read_roster(tmp_path, NAMES)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(FormatError, match=r"manifest\.json"):
        read_roster(tmp_path, NAMES)


def test_adapters_that_saw_the_truth_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "mono", cells=[["cat", "mono"], ["thing-1", "noto"]])
    assert read_roster(tmp_path, NAMES).has("style", "mono")
    write(tmp_path, "blobs", cells=[["cat", "blobs"], ["thing-1", "blobs"]])
    with pytest.raises(FormatError, match=r"blobs\.safetensors: was trained on thing-1"):
        read_roster(tmp_path, NAMES)
