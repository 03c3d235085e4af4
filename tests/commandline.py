"""The command line, called in this process with real arguments and real files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import typer.main

from loracomp.cli import main

known_commands = cache(typer.main.get_command)
"""The tree of commands, which a program builds once, is built once here too."""


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The error, which has to be a single line."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


Run = Callable[..., Outcome]


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs ``loracomp ARGUMENTS…``."""

    monkeypatch.setattr(typer.main, "get_command", known_commands)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["loracomp", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
