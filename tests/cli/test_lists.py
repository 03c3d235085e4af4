"""The commands that look: inspect, base, adapters, methods, help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commandline import Run

from loracomp.bases import BASES
from loracomp.fusion import METHODS
from loracomp.fusion.offline import MERGES


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['loracomp', '--help']\n"
        "from loracomp.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers', 'peft', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "compose" in done.stdout


@pytest.mark.parametrize("arguments", [["base", "list"], ["methods"], ["adapters", "list"]])
def test_lists_name_everything(loracomp: Run, arguments: list[str]) -> None:
    from loracomp.library import manifest

    known = {"base": BASES, "methods": METHODS, "adapters": manifest()}[arguments[0]]
    text, data = loracomp(*arguments), loracomp(*arguments, "--json")
    rows = next(iter(data.json.values()))
    assert [row["name"] for row in rows] == (sorted(known) if arguments[0] == "adapters" else list(known))
    assert all(name in text.out for name in known)


def test_merge_methods_are_listed_beside(loracomp: Run) -> None:
    rows = loracomp("methods", "--json").json["merges"]
    assert [row["name"] for row in rows] == list(MERGES)
    assert {"density"} <= set(next(row for row in rows if row["name"] == "ties")["options"])


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_shown(loracomp: Run, name: str) -> None:
    facts = loracomp("base", "show", name, "--json").json
    assert facts["prediction"] == BASES[name].prediction
    assert BASES[name].title in loracomp("base", "show", name).out
    assert loracomp("base", "show", name + "x").code == 2


def test_inspect_tells_what_is_inside(loracomp: Run) -> None:
    report = loracomp("inspect", "mono", "--json").json
    assert (report["base"], report["confidence"]) == ("glyph", 1.0)
    assert {row["rank"] for row in report["rows"]} == {4}
    text = loracomp("inspect", "mono")
    assert text.code == 0
    assert all(row["path"] in text.out for row in report["rows"])
    assert "damaged" not in text.out
    assert "no place" not in text.out


def test_inspect_reports_damage(loracomp: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from loracomp.library import find

    tensors = load_file(find("mono"))
    names = sorted(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[names[0]].fill_(float("nan"))
    tensors[names[1]].zero_()
    tensors["lora_unet_nowhere.lora_up.weight"] = torch.zeros(4, 4)
    save_file(tensors, tmp_path / "bad.safetensors")
    done = loracomp("inspect", tmp_path / "bad.safetensors", "--json")
    assert done.code == 4
    assert len(done.json["damaged"]) == len(done.json["zero"]) == 1
    assert "lora_unet_nowhere.lora_up.weight" in done.json["unmatched"]
    text = loracomp("inspect", tmp_path / "bad.safetensors")
    assert text.code == 4
    assert "zero: changes nothing" in text.out
