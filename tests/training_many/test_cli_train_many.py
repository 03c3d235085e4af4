"""``loracomp train many`` as a user sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loracomp.cli.train import app
from loracomp.errors import TrainingError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, sd15: Any) -> str:
    """A tiny model as a diffusers folder."""
    place = tmp_path_factory.mktemp("base")
    sd15.save_pretrained(place)
    return str(place)


def call(*words: object) -> Any:
    """Runs the command; errors come through as exceptions."""
    return RUNNER.invoke(app, ["many", *map(str, words)], catch_exceptions=False)


def test_a_manifest_becomes_a_folder_of_files_and_a_report(
    base: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    manifest, out = write({"steps": 2}, {"steps": 1}, base=base), tmp_path / "out"
    result = call(manifest, "--out", out, "--at-once", 2, "--device", "cpu", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found == json.loads((out / "report.json").read_text())
    assert {name: row["status"] for name, row in found["adapters"].items()} == {"a0": "done", "a1": "done"}
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert events[0]["event"] == "cohort"
    assert events[0]["at_once"] == 2
    assert events[-1]["step"] == 3
    plain = call(manifest, "--out", out)
    assert plain.stdout.startswith(f"{out}: 2 of 2 adapters")


def test_failures_are_told_after_the_rest_is_done(
    base: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = write({"steps": 2}, {"lr": 1e30, "warmup": 0, "steps": 3}, base=base)
    with pytest.raises(TrainingError, match=r"line 2 \(a1\): loss or gradient not finite") as caught:
        call(manifest, "--out", tmp_path / "out")
    assert caught.value.exit_code == 4
    assert (tmp_path / "out" / "a0.safetensors").exists()
    assert not (tmp_path / "out" / "a1.safetensors").exists()
