"""The layout of architecture: folders, links, import directions, public names, file sizes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import loracomp

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "loracomp"
PARTS = ("retrieval", "fusion", "watermark", "training", "app")

CORE = {"adapter", "lowrank", "bases", "registry", "errors"}
FILES = CORE | {"formats"}
RUNTIME = FILES | {"fusion", "pipeline", "loading", "library", "recipe"}
MAY_IMPORT = {
    "adapter": CORE,
    "lowrank": CORE,
    "bases": CORE,
    "registry": CORE,
    "errors": CORE,
    "formats": CORE,
    "fusion": FILES,
    "retrieval": FILES,
    "watermark": FILES,
    "recipe": CORE,
    "library": FILES,
    "loading": FILES,
    "pipeline": FILES | {"fusion"},
    "alone": RUNTIME,
    "drawing": RUNTIME,
    "plugin": RUNTIME,
    "evaluation": RUNTIME | {"drawing"},
    "training": RUNTIME | {"alone", "retrieval", "watermark", "evaluation"},
}
HEAVY = {"torch", "diffusers", "transformers", "gradio", "open_clip", "lancedb", "ray", "peft", "PIL"}


def sources(unit: str) -> list[Path]:
    file = PACKAGE / f"{unit}.py"
    return [file] if file.is_file() else sorted((PACKAGE / unit).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Units X of every ``loracomp.X`` that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    units = {name.split(".")[1] for name in names if name.startswith("loracomp.")}
    return {unit for unit in units if (PACKAGE / unit).exists() or (PACKAGE / f"{unit}.py").exists()}


def test_every_unit_has_a_rule() -> None:
    units = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    doors = {"__init__", "__main__", "__pycache__", "assets", "cli", "app"}
    assert units - doors == set(MAY_IMPORT)


@pytest.mark.parametrize("unit", MAY_IMPORT)
def test_imports_point_downwards(unit: str) -> None:
    for path in sources(unit):
        assert imported(path) <= MAY_IMPORT[unit] | {unit}, path


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_visible_at_the_top(part: str) -> None:
    link = ROOT / part
    assert link.is_symlink()
    assert link.readlink() == Path("loracomp") / part
    assert link.resolve() == PACKAGE / part


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_the_command_line_imports_nothing_heavy(path: Path) -> None:
    top = [
        node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom) and node.module}
    assert not {name.split(".")[0] for name in names} & HEAVY


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))
    assert path.stem not in {"utils", "helpers", "common", "base"} or path.parent.name == "cli"


def test_public_names_exist_and_are_sorted() -> None:
    public = [name for name in loracomp.__all__ if name != "__version__"]
    assert set(public) == set(loracomp._HOMES)
    assert all(getattr(loracomp, name) is not None for name in public)
