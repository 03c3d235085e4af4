"""``compose --explain``: pictures and a table beside the image, and refusals before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import Run
from PIL import Image

from loracomp.fusion.gated import Form, GateWeights
from loracomp.library import open_adapter

pytestmark = pytest.mark.usefixtures("glyph_once")
PAIR = ("--lora", "watermelon", "--lora", "mono")
QUICK = ("--steps", 2, "--seed", 7)


def gate(path: Path) -> Path:
    """A gate for glyph with random vectors."""
    form, generator = Form.ours(), torch.Generator().manual_seed(0)
    layers = {}
    for name, layer in open_adapter("watermelon").layers.items():
        start = form.initial(len(layer.up))
        layers[name] = start + 0.3 * torch.randn(start.shape, generator=generator)
    GateWeights(form, "glyph", layers).save(path)
    return path


def test_explain_writes_heat_maps_and_a_table_nearer_than_merge(loracomp: Run, tmp_path: Path) -> None:
    file, out = gate(tmp_path / "gate"), tmp_path / "a.png"
    method = ("--method", "gated", "--option", f"gate={file}")
    where = ("--out", out, "--explain", tmp_path / "why")
    done = loracomp("compose", "x", *PAIR, *method, *QUICK, *where, "--json")
    assert done.code == 0
    told = done.json["explained"]
    parts = ("layers.png", "maps.png", "table.json")
    assert told["files"] == [str(tmp_path / f"why-{part}") for part in parts]
    for name in told["files"][:2]:
        with Image.open(name) as picture:
            assert len(set(picture.convert("RGB").getdata())) > 20
    assert 0 < told["unexplained"] < 1
    assert set(told["psnr"]) == {"table", "merge"}
    assert told["psnr"]["table"] > told["psnr"]["merge"]


def test_what_cannot_be_explained_is_refused(loracomp: Run, tmp_path: Path) -> None:
    where = ("--out", tmp_path / "a.png", "--explain", tmp_path / "why")
    done = loracomp("compose", "x", *PAIR, *QUICK, *where)
    assert done.code == 2
    assert "--method gated" in done.err
    done = loracomp("compose", "x", *PAIR, *QUICK, *where, "--batch", 2)
    assert done.code == 2
    assert "--batch" in done.err


def test_a_missing_gate_or_table_is_a_missing_resource(loracomp: Run, tmp_path: Path) -> None:
    for option in ("gate", "table"):
        done = loracomp(
            "compose", "x", *PAIR, *QUICK, "--method", "gated", "--option", f"{option}={tmp_path / 'none'}",
            "--out", tmp_path / "a.png",
        )  # fmt: skip
        assert done.code == 5
        assert str(tmp_path / "none") in done.err
