"""``loracomp base check``: holds on sound pipelines of every kind, and notices an engine that is off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import Run
from PIL import Image
from tiny import KINDS, tiny_pipeline
from torch import Tensor

from loracomp.evaluation.fidelity import LAWS, begin, check, fingerprint, silence, trace
from loracomp.evaluation.pace import measure
from loracomp.evaluation.specimen import Bench
from loracomp.fusion.stacked import StackedUpdate
from loracomp.pipeline import denoiser_of


def bench(kind: str, dtype: torch.dtype = torch.float32) -> Bench:
    pipe = tiny_pipeline(kind)
    return Bench(pipe.to(dtype), steps=2, side=32)


@pytest.mark.parametrize("kind", KINDS)
def test_all_laws_hold_on_every_kind(kind: str) -> None:
    table = bench(kind)
    table.shoot()
    before = fingerprint(table.pipe)
    laws, trial = check(table)
    assert [(law.name, law.error) for law in laws if not law.holds] == []
    assert len({law.name for law in laws}) == len(LAWS)
    assert all(law.error is None or law.error < 1e-5 for law in laws)
    assert fingerprint(table.pipe) == before
    base, merged = (trial.pictures[name][0] for name in ("base alone", "merge of three"))
    assert base.tobytes() != merged.tobytes()


def test_half_precision_is_held_to_what_peft_itself_reaches() -> None:
    laws, trial = check(bench("flux", torch.bfloat16))
    assert trial.limit > 1e-3
    assert [law.name for law in laws if not law.holds] == []


def assert_noticed(failed: list[str], noticed: set[str]) -> None:
    """The laws that fail are those whose names begin so."""
    assert len(failed) == len(noticed)
    assert all(any(name.startswith(start) for name in failed) for start in noticed)


Broken = Callable[[StackedUpdate, Tensor, Tensor], Tensor]


def _louder(update: StackedUpdate, x: Tensor, y: Tensor) -> Tensor:
    return y + 1.01 * (_forward(update, x, y) - y)


def _never_silent(update: StackedUpdate, x: Tensor, y: Tensor) -> Tensor:
    return _forward(update, x, y) * (1 + 1e-6)


def _first_for_all(update: StackedUpdate, x: Tensor, y: Tensor) -> Tensor:
    kept, update.gate = update.gate, update.gate[:1]
    out = _forward(update, x, y)
    update.gate = kept
    return out


_forward = StackedUpdate.forward


@pytest.mark.parametrize(
    ("broken", "noticed"),
    [
        (_never_silent, {"weight 0"}),
        (_first_for_all, {"a batch of mixtures"}),
    ],
)
def test_an_engine_that_is_off_is_noticed(
    monkeypatch: pytest.MonkeyPatch, broken: Broken, noticed: set[str]
) -> None:
    monkeypatch.setattr(StackedUpdate, "forward", broken)
    laws, _ = check(bench("sd15"))
    assert_noticed([law.name for law in laws if not law.holds], noticed)


def test_a_trace_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StackedUpdate, "leave", lambda self, module: self.handle.remove())
    trial = begin(bench("sd15"))
    laws = [silence(trial), trace(trial)]
    assert [law.name for law in laws if not law.holds] == ["detach leaves no trace, bit for bit"]


def test_times_are_of_the_calls_that_a_run_makes() -> None:
    table = bench("flux")
    paces = measure(table, (1, 2), rounds=1, calls=1)
    assert [pace.adapters for pace in paces] == [1, 2]
    assert all(min(pace.base, pace.ours, pace.peft) > 0 for pace in paces)
    assert not getattr(denoiser_of(table.pipe)[1], "peft_config", {})


def test_the_command_reports(loracomp: Run, tmp_path: Path) -> None:
    tiny_pipeline("sd15").save_pretrained(tmp_path / "tiny")
    out = tmp_path / "report"
    words = ("base", "check", tmp_path / "tiny", "--steps", 2, "--rounds", 1, "--out", out)
    done = loracomp(*words, "--size", 32, "--json")
    assert done.code == 0, done.err
    assert done.json["holds"]
    assert [row["adapters"] for row in done.json["step"]] == [1, 3, 5]
    assert "ours_s" not in done.json["step"][0]
    assert json.loads((out / "report.json").read_text()) == done.json
    page = (out / "report.md").read_text()
    assert "all laws hold" in page
    assert all(law["name"] in page for law in done.json["laws"])
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 3 * 160


def test_the_command_returns_1_where_a_law_does_not_hold(
    loracomp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline("sd15").save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(StackedUpdate, "forward", _louder)
    words = ("base", "check", tmp_path / "tiny", "--size", 32, "--steps", 2, "--rounds", 1)
    done = loracomp(*words, "--out", tmp_path / "report")
    assert done.code == 1
    assert "NO" in done.out
    laws = json.loads((tmp_path / "report" / "report.json").read_text())["laws"]
    wanted = {"merge equals", "one adapter equals", "three adapters", "switch equals"}
    assert_noticed([law["name"] for law in laws if not law["holds"]], wanted)
    assert "**some laws do not hold**" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["no/such/folder.safetensors"], 5, "no such base"),
        (["glyph", "--size", "33"], 2, "not a multiple of 8"),
        (["glyph", "--out", "file"], 2, "--out names a folder"),
        (["file"], 4, "not a safetensors checkpoint"),
    ],
)
def test_what_cannot_be_checked_gets_one_line(
    loracomp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no model")
    done = loracomp("base", "check", *words)
    assert done.code == code
    assert says in done.line
