"""``index build --draw``: from files to pictures, and what it says where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Run

from loracomp.errors import ResourceError
from loracomp.library import SHIPPED
from loracomp.retrieval.drawn import WORDS

SHAPE = (len(WORDS), 3, 64, 64)
# Grey levels that the order of sums may move a picture by.
ROUNDING = 4


def test_the_command_line_draws_with_shipped_adapters(loracomp: Run, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
    from PIL import Image

    (tmp_path / "loras").mkdir()
    for name in ("mono", "violin"):
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(
            (SHIPPED / f"{name}.safetensors").read_bytes()
        )
    place = ("--index", tmp_path / "index")
    first = loracomp("index", "build", tmp_path / "loras", *place, "--json")
    assert "drawn" not in first.json
    assert loracomp("index", "show", "mono", *place, "--json").json["drawn"] is False
    early = loracomp("index", "show", "mono", *place, "--picture", tmp_path / "x.png")
    assert (early.code, "--draw" in early.line) == (5, True)
    done = loracomp("index", "build", tmp_path / "loras", *place, "--draw", "--json")
    assert (done.code, done.json["drawn"], done.json["failed"]) == (0, 2, {})
    assert (done.json["unchanged"], done.json["undrawn"]) == (2, {})
    assert loracomp("index", "show", "mono", *place, "--json").json["drawn"] is True
    for name in ("mono", "violin"):
        assert loracomp("index", "show", name, *place, "--picture", tmp_path / f"{name}.png").code == 0
    mono, violin = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("mono", "violin"))
    assert mono.size == (512, 64)
    assert colour(mono) < 0.5 * colour(violin), "mono draws in black and white"
    assert loracomp("index", "stats", *place, "--json").json["drawn"] == 2
    assert loracomp("index", "export", tmp_path / "all.parquet", *place).code == 0
    assert loracomp("index", "remove", "violin", *place).code == 0
    assert loracomp("index", "stats", *place, "--json").json["drawn"] == 1
    again = loracomp("index", "build", tmp_path / "loras", *place, "--draw", "--json")
    assert again.json["drawn"] == 0


def colour(image: Any) -> float:
    """Mean distance of the channels from their mean."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(-1, 3).float()
    return float((values - values.mean(1, keepdim=True)).abs().mean())


def test_a_base_that_is_not_at_hand_is_said_at_once(loracomp: Run, tmp_path: Path) -> None:
    done = loracomp("index", "build", tmp_path, "--index", tmp_path / "i", "--base", "sdxl", "--draw")
    assert (done.code, "--base sdxl --base-folder" in done.line) == (5, True)
    assert not (tmp_path / "i").exists()
    from loracomp.cli.index_drawing import Drawn

    with pytest.raises(ResourceError, match="3 adapters of flux"):
        Drawn(undrawn={"flux": 3}).check()
