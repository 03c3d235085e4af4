"""``loracomp train`` as a user sees it: outputs, errors, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loracomp.cli.train import app
from loracomp.errors import TrainingError, UsageError

RUNNER = CliRunner()
SMALL = ["--set", "resolution=32", "--set", "sample_count=1", "--set", "sample_steps=1", "--rank", "2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, sd15: Any) -> Path:
    """A tiny model as a diffusers folder."""
    place = tmp_path_factory.mktemp("base")
    sd15.save_pretrained(place)
    return place


def call(*words: object) -> Any:
    """Runs a command; errors come through as exceptions."""
    return RUNNER.invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_run_writes_file_and_samples(folder: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "ink.safetensors"
    settings = ["--kind", "style", "--name", "ink", "--base", base, "--steps", 2, "--batch", 2, *SMALL]
    result = call("run", folder, *settings, "--out", out, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert Path(facts["out"]) == out
    assert facts["steps"] == 2
    assert facts["bytes"] == out.stat().st_size
    assert Path(facts["samples"]).is_file()
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "step"
    assert events[-1]["step"] == 2


def test_options_win_over_set_and_set_over_the_file(folder: Path, base: Path, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(f'kind = "style"\nname = "from-file"\nbase = "{base}"\nsteps = 3\nbatch = 4\nseed = 5\n')
    out = tmp_path / "ink.safetensors"
    words = ["--config", toml, "--set", "batch=1", "--set", "steps=4", "--steps", 1, *SMALL, "--out", out]
    assert call("run", folder, *words).exit_code == 0
    data = out.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    config = json.loads(header["loracomp.config"])
    assert (config["name"], config["batch"], config["steps"], config["seed"]) == ("from-file", 1, 1, 5)


def test_mistakes_are_errors_of_the_tree(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kind: needed"):
        call("run", folder, "--name", "ink")
    with pytest.raises(UsageError, match="did you mean"):
        call("run", folder, "--name", "ink", "--kind", "style", "--set", "rnak=3")
    with pytest.raises(TrainingError, match="no such folder"):
        call("run", tmp_path / "none", "--name", "ink", "--kind", "style")
    with pytest.raises(TrainingError, match="no such checkpoint"):
        call("resume", tmp_path / "ink.safetensors")


def test_check(folder: Path) -> None:
    (folder / "1.txt").unlink()
    lines = call("check", folder, "--resolution", 64).stdout.splitlines()
    assert "4 pictures, 3 with captions" in lines[0]
    assert any("1.png without a caption" in line for line in lines)
    assert any("4 smaller than 64 px" in line for line in lines)
    facts = json.loads(call("check", folder, "--json").stdout)
    assert facts["pictures"] == 4
    assert facts["without_caption"] == ["1.png"]


def test_settings_lists_every_setting() -> None:
    rows = json.loads(call("settings", "--json").stdout)
    assert {"lr", "steps", "min_snr_gamma"} <= {row["setting"] for row in rows}


def test_ctrl_c_saves_and_resume_finishes(folder: Path, base: Path, tmp_path: Path) -> None:
    """The real program, a real signal: exit code 130, a state on disk, and a way on."""
    out = tmp_path / "ink.safetensors"
    command = [
        sys.executable, "-m", "loracomp", "train", "run", folder, "--kind", "style", "--name", "ink",
        "--base", base, "--steps", "1000", "--batch", "1", "--set", "sample_count=0", "--set",
        "resolution=32", "--out", out, "--json", "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [str(word) for word in command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        next(line for line in lines if '"event": "step"' in line)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=300) == 130
    assert "finishing this step" in rest
    assert f"train resume {out}" in rest
    assert (tmp_path / "ink.safetensors.ckpt" / "state.safetensors").is_file()
    assert not out.exists()
