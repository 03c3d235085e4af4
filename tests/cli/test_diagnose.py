"""``loracomp diagnose``, ``loracomp profile`` and ``compose --strength``, on the shipped adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commandline import Run
from PIL import Image

from loracomp.library import SHIPPED

pytestmark = pytest.mark.usefixtures("own_cache", "glyph_once")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACOMP_CACHE", str(tmp_path / "cache"))


def test_a_report_and_its_heat_map(loracomp: Run, tmp_path: Path) -> None:
    out = tmp_path / "heat.png"
    done = loracomp("diagnose", "violin", "mono:0.5", "--no-features", "--json", "--out", out)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["pairs"] == [["violin", "mono"]] and found["weights"] == [1.0, 0.5]
    assert found["bands"] == ["high", "high"] and found["advice"]["method"]
    assert [block["name"] for block in found["blocks"]][:2] == ["down.0.0", "down.1.0"]
    assert all(block["features"] is None for block in found["blocks"])
    with Image.open(out) as image:
        assert image.width > 500


def test_features_of_the_embedded_base(loracomp: Run) -> None:
    done = loracomp("diagnose", "violin", "pixel")
    assert done.code == 0, done.err
    assert "take --method" in done.out and "of outputs" in done.out
    assert "frequencies" in done.out


def test_profiles_lie_beside_the_file_and_give_strengths(loracomp: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    shutil.copy(SHIPPED / "mono.safetensors", file)
    drawing = ["compose", "a house", "--lora", file, "--strength", "0.5", "--steps", "2"]
    drawing += ["--out", tmp_path / "x.png"]
    refused = loracomp(*drawing)
    assert refused.code == 5 and "--effect" in refused.line
    asked = (
        "profile",
        file,
        "--effect",
        "--seeds",
        2,
        "--steps",
        2,
        "--prompt",
        "a house, {words}",
        "--json",
    )
    first = loracomp(*asked)
    assert first.code == 0, first.err
    known = json.loads(first.out)["adapters"][0]
    assert known["frequency"]["band"] in ("high", "low", "unknown")
    (sidecar,) = tmp_path.glob("*.measured.json")
    assert json.loads(sidecar.read_text())["digest"] == known["digest"]
    file.rename(tmp_path / "other.safetensors")
    again = loracomp("profile", tmp_path / "other.safetensors", "--effect", "--json")
    assert json.loads(again.out)["adapters"][0]["effect"] == known["effect"]
    done = loracomp(*(str(part).replace("mine", "other") for part in drawing), "--json")
    assert done.code == 0, done.err
    weight = json.loads(done.out)["images"][0]["recipe"]["uses"][0]["weight"]
    assert 0 < weight < 1 and weight != 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("diagnose", "violin"), 2, "two or more"),
        (("diagnose", "violin", "viollin"), 2, "did you mean violin"),
        (("diagnose", "violin", "mono", "--no-features", "--out", "no/folder/x.png"), 2, "cannot be written"),
        (("profile", "nothing.safetensors"), 4, "no such file"),
        (("compose", "x", "--lora", "mono:1@0..0.5", "--strength", "0.5"), 2, "plain weights"),
        (("compose", "x", "--lora", "mono", "--strength", "nan"), 2, "a number is needed"),
    ],
)
def test_bad_requests_get_one_line(loracomp: Run, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = loracomp(*arguments)
    assert done.code == code and says in done.line, done.err
