"""What is shown of a run, on terminals and elsewhere."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from loracomp.training.progress import clock, plain_lines, reporter, sentence

START = {
    "event": "start", "name": "ink", "kind": "style", "base": "glyph", "pictures": 80, "steps": 9, "rank": 4,
    "layers": 3, "parameters": 12345, "precision": "fp32", "device": "cpu",
}  # fmt: skip


def step(number: int) -> dict[str, Any]:
    return {
        "event": "step", "step": number, "steps": 9, "loss": 0.25, "lr": 1e-3, "step_ms": 500.0,
        "eta_s": (9 - number) * 0.5,
    }  # fmt: skip


def test_sentences() -> None:
    assert sentence(START).startswith("ink: style on glyph, 80 pictures, 9 steps, rank 4, 12,345 parameters")
    assert sentence(step(3)) == "step 3/9, loss 0.2500, 0.50 s/step, 0:03 left"
    assert sentence({"event": "note", "text": "hello"}) == "hello"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (65, "1:05"), (3599.7, "1:00:00"), (7384, "2:03:04")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_plain_lines_are_few_and_end_with_the_last_step() -> None:
    stream = io.StringIO()
    report = plain_lines(stream)
    for event in (START, *(step(number) for number in range(1, 10))):
        report(event)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["ink: style on glyph", "step 1/9", "step 9/9"]


def test_json_lines_hold_every_event() -> None:
    stream = io.StringIO()
    with reporter(stream, as_json=True) as report:
        for number in range(1, 4):
            report(step(number))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [step(n) for n in range(1, 4)]


def test_a_terminal_gets_a_bar_and_notes_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with reporter(Terminal(), as_json=False) as report:
        report(START)
        for number in range(1, 10):
            report(step(number))
        report({"event": "checkpoint", "text": "saved step 9 in [ink].ckpt"})
    shown = capsys.readouterr().err
    assert "ink: style on glyph" in shown
    assert "saved step 9 in [ink].ckpt" in shown
    assert "9/9" in shown
