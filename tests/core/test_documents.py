"""README and docs: their Python runs, their links lead somewhere, their commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from loracomp.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks(ROOT / "README.md", "python"):
        exec(
            compile(code.replace("num_inference_steps=25", "num_inference_steps=2"), "README.md", "exec"), {}
        )


def commands() -> list[list[str]]:
    lines = [line for page in PAGES for code in blocks(page, "bash") for line in code.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("loracomp ")]


def known(words: list[str]) -> tuple[set[str], set[str]]:
    """Options of the command that ``words`` call, and the names of all commands on the way."""
    import typer

    command, names = typer.main.get_command(app), set()
    for word in words:
        if not hasattr(command, "commands") or word not in command.commands:
            break
        command = command.commands[word]
        names.add(word)
    return {option for parameter in command.params for option in parameter.opts}, names


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_every_command_shown_exists(words: list[str]) -> None:
    options, names = known(words[1:])
    assert names, words
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options
