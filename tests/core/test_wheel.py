"""A built wheel, installed beside nothing but its dependencies, imports everything and runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALK = """
import importlib, pkgutil, loracomp
names = [m.name for m in pkgutil.walk_packages(loracomp.__path__, "loracomp.") if "__main__" not in m.name]
for name in names:
    importlib.import_module(name)
print(loracomp.__file__)
print(*names)
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment that has the wheel, and the dependencies by path only."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "loracomp", source / "loracomp", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    place = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    subprocess.run([*place, *map(str, folder.glob("*.whl"))], check=True, capture_output=True)
    site = next((folder / "env").glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def test_every_module_imports_from_the_wheel(python: Path, tmp_path: Path) -> None:
    done = subprocess.run([python, "-c", WALK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, names = done.stdout.strip().splitlines()[-2:]
    assert str(python.parents[1]) in where
    assert {"loracomp.fusion.stacked", "loracomp.watermark", "loracomp.app"} <= set(names.split())


def test_the_command_works_from_the_wheel_in_an_empty_folder(python: Path, tmp_path: Path) -> None:
    command = [
        python.with_name("loracomp"),
        "compose",
        "a watermelon emoji, mono style",
        "--lora",
        "watermelon",
    ]
    more = ["--lora", "mono", "--method", "switch", "--seed", "1", "--steps", "2", "--out", "a.png"]
    done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    helped = subprocess.run([command[0], "--help"], capture_output=True, text=True, check=True)
    assert "compose" in helped.stdout
