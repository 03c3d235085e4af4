"""``loracomp benchmark compose`` from the command line to its files, on the real base in two steps."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import GLYPH, random_adapter
from typer.testing import CliRunner, Result

from loracomp.adapter import Acceleration
from loracomp.bases import modules
from loracomp.cli.benchmark import app
from loracomp.errors import ResourceError, UnknownNameError, UsageError
from loracomp.evaluation.artwork import read_names
from loracomp.evaluation.glyph_judge import JudgeConfig, build_clip
from loracomp.formats import load, save
from loracomp.loading import open_base

NAMES = read_names()
open_once = cache(open_base)
ADAPTERS = ("watermelon", "bicycle", "mono", "pixel")


@pytest.fixture(autouse=True)
def opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is read from disk once for all tests here."""
    monkeypatch.setattr("loracomp.loading.open_base", open_once)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random adapters for glyph and a random judge that knows the benchmark's names."""
    from transformers import CLIPTokenizer

    root = tmp_path_factory.mktemp("bench")
    (root / "adapters").mkdir()
    (root / "judge").mkdir()
    for seed, name in enumerate(ADAPTERS):
        adapter = random_adapter(dict(modules("glyph")), ("to_q", "to_v"), seed=seed, name=name, base="glyph")
        save(adapter, root / "adapters" / f"{name}.safetensors")
    config = JudgeConfig(
        vision="tiny", width=32, text_width=32, text_layers=1,
        subjects=tuple(NAMES.subjects), subject_names=tuple(NAMES.subjects.values()),
        styles=tuple(NAMES.looks), style_phrases=tuple(look.phrase for look in NAMES.looks.values()),
        colors=tuple(NAMES.colours),
    )  # fmt: skip
    torch.manual_seed(0)
    state = build_clip(config).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, root / "judge" / "model.safetensors")
    (root / "judge" / "config.json").write_text(config.to_json())
    CLIPTokenizer.from_pretrained(GLYPH / "tokenizer")._tokenizer.save(str(root / "judge" / "tokenizer.json"))
    return root


def call(folder: Path, *words: str) -> Result:
    fixed = [
        "--adapters",
        str(folder / "adapters"),
        "--judge",
        f"glyph:{folder / 'judge'}",
        "--device",
        "cpu",
    ]
    quick = ["--steps", "2", "--seeds", "1", "--out", str(folder / "out")]
    return CliRunner().invoke(app, ["compose", *fixed, *quick, *words])


def test_a_run_writes_its_results_and_is_gone_on_with(folder: Path) -> None:
    result = call(folder, "--pairs", "1", "--method", "merge", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    part = found["sections"][0]
    assert list(part["figures"]) == ["artist", "no LoRA", "subject alone", "style alone", "merge"]
    assert part["figures"]["artist"]["similarity"]["mean"] == pytest.approx(1, abs=1e-5)
    assert part["figures"]["merge"]["time"]["mean"] > 0
    records = folder / "out" / "records.jsonl"
    first = records.read_text()
    assert len(first.splitlines()) == 5
    again = call(folder, "--pairs", "1", "--method", "merge", "--method", "switch:period=0.5")
    assert again.exit_code == 0, again.output
    text = records.read_text()
    assert text.startswith(first)
    assert [json.loads(line)["row"] for line in text.splitlines()[5:]] == ["switch:period=0.5"]
    assert "| switch:period=0.5 |" in (folder / "out" / "table.md").read_text()
    assert again.stdout.strip() == (folder / "out" / "table.md").read_text().strip()
    assert (folder / "out" / "sheet-1+1-2.png").is_file()
    other = call(folder, "--pairs", "1", "--method", "merge", "--weight", "0.5")
    assert isinstance(other.exception, UsageError)
    assert "weight" in str(other.exception)


def test_an_accelerator_brings_its_own_steps(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "fast.safetensors"
    adapter = random_adapter(dict(modules("glyph")), ("to_q",), seed=9, name="fast", base="glyph")
    save(adapter, file, metadata={Acceleration.KEY: Acceleration(3, 1.0).to_json()})
    fixed = ["--adapters", str(folder / "adapters"), "--judge", f"glyph:{folder / 'judge'}"]
    words = ["--pairs", "1", "--method", "merge", "--seeds", "1", "--device", "cpu", "--json"]
    more = ["--accelerator", str(file), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["compose", *fixed, *words, *more])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [part["steps"] for part in found["sections"]] == [3]
    assert (found["settings"]["guidance"], found["settings"]["guidance_rescale"]) == (1.0, 0.0)
    assert found["settings"]["accelerator"] == load(file).digest[:16]
    other = call(folder, "--accelerator", str(folder / "adapters" / "mono.safetensors"))
    assert isinstance(other.exception, UsageError)
    assert "no accelerator" in str(other.exception)


def test_parts_make_a_whole(folder: Path, tmp_path: Path) -> None:
    words = ("--pairs", "2", "--method", "merge", "--out", str(tmp_path))
    for part in ("1/2", "2/2"):
        assert call(folder, *words, "--part", part).exit_code == 0
        assert not (tmp_path / "table.md").exists()
    records = (tmp_path / "records.jsonl").read_text()
    assert call(folder, *words).exit_code == 0
    assert (tmp_path / "records.jsonl").read_text() == records
    assert json.loads((tmp_path / "results.json").read_text())["sections"][0]["cells"] == 2


def test_tables_of_a_part_are_written_without_drawing(folder: Path, tmp_path: Path) -> None:
    words = ("--pairs", "2", "--method", "merge", "--out", str(tmp_path))
    assert call(folder, *words, "--part", "1/2").exit_code == 0
    records = (tmp_path / "records.jsonl").read_text()
    assert call(folder, *words, "--tables").exit_code == 0
    assert (tmp_path / "records.jsonl").read_text() == records
    assert json.loads((tmp_path / "results.json").read_text())["sections"][0]["cells"] == 1
    empty = call(folder, "--out", str(tmp_path / "nothing"), "--tables")
    assert isinstance(empty.exception, UsageError)
    assert "not the settings of a run" in str(empty.exception)


def test_wrong_requests_are_one_line(folder: Path, tmp_path: Path) -> None:
    for words, kind in (
        (("--method", "mergge"), UnknownNameError),
        (("--protocol", "9+9"), UnknownNameError),
        (("--split", "train"), UnknownNameError),
        (("--steps", "0"), UsageError),
        (("--part", "3/2"), UsageError),
        (("--part", "half"), UsageError),
        (("--adapters", str(tmp_path / "none")), UsageError),
        (("--adapters", str(tmp_path)), ResourceError),
        (("--judge", f"glyph:{tmp_path}"), ResourceError),
        (("--protocol", "2+3"), ResourceError),
    ):
        error = call(folder, *words).exception
        assert isinstance(error, kind), words
        assert "\n" not in str(error)
