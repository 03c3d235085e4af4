"""The picture in the header: small, written on request, kept, and never a way to a file."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from loracomp.adapter import Adapter
from loracomp.cli import app
from loracomp.errors import UsageError
from loracomp.formats import convert, diagnose, load, save, thumbnail
from loracomp.formats.thumbnail import BYTES, KEY, LARGEST_TEXT, SIDE, decoded
from loracomp.lowrank import LowRank

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    adapter = Adapter({LAYER: LowRank(torch.randn(2, 1280), torch.randn(1280, 2))}, "sd15", "kite")
    return save(adapter, tmp_path / "a.safetensors")


def uri(picture: Image.Image, kind: str = "JPEG") -> str:
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def warned(path: Path) -> str:
    return next((f.message for f in diagnose(path).findings if f.code == "thumbnail"), "")


def test_pictures_become_small_jpegs(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    for name, picture in {
        "wide.png": Image.fromarray(noise),
        "small.jpg": Image.new("RGB", (20, 10), "red"),
        "gray.png": Image.new("L", (300, 600), 77),
        "palette.gif": Image.new("P", (300, 300)),
    }.items():
        picture.save(tmp_path / name)
        raw = decoded(thumbnail(tmp_path / name))
        with Image.open(io.BytesIO(raw)) as small:
            assert small.format == "JPEG" and max(small.size) <= SIDE and len(raw) <= BYTES
            ratio = small.size[0] / small.size[1]
            assert ratio == pytest.approx(picture.size[0] / picture.size[1], rel=0.01)
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    with Image.open(io.BytesIO(decoded(thumbnail(tmp_path / "clear.png")))) as small:
        assert small.getpixel((5, 5)) == (255, 255, 255)


def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png", "."):
        with pytest.raises(UsageError) as caught:
            thumbnail(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value) + "."


def test_the_command_writes_it_and_conversions_keep_it(lora: Path, tmp_path: Path) -> None:
    Image.new("RGB", (512, 512), "blue").save(tmp_path / "blue.png")
    out = tmp_path / "b.safetensors"
    options = ["--thumbnail", str(tmp_path / "blue.png"), "--set", "modelspec.license=CC-BY-4.0"]
    done = CliRunner().invoke(app, ["convert", str(lora), str(out), *options])
    assert done.exit_code == 0, done.output
    again = tmp_path / "c.safetensors"
    convert(out, again, dialect="diffusers", dtype=torch.float16)
    for path in (out, again):
        with safe_open(path, "pt") as file:
            strings = file.metadata()
        assert strings["modelspec.license"] == "CC-BY-4.0"
        with Image.open(io.BytesIO(decoded(strings[KEY]))) as small:
            assert small.size == (SIDE, SIDE)
        assert warned(path) == ""
    assert CliRunner().invoke(app, ["convert", str(lora), str(out), "--set", "x"]).exit_code != 0


def test_only_pictures_are_written(lora: Path, tmp_path: Path) -> None:
    for bad in ("/etc/passwd", "data:image/jpeg;base64,AAAA", "https://example.org/a.jpg", ""):
        with pytest.raises(UsageError, match="thumbnail"):
            save(load(lora), tmp_path / "b.safetensors", metadata={KEY: bad})
    assert not (tmp_path / "b.safetensors").exists()


def test_entries_of_strangers_are_checked_and_never_opened(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (8, 8)).save(secret)
    good = uri(Image.new("RGB", (64, 64)), "PNG")
    real = Image.open

    def only_memory(file: Any, *args: Any, **options: Any) -> Any:
        assert isinstance(file, io.BytesIO), "a path was opened"
        return real(file, *args, **options)

    monkeypatch.setattr(Image, "open", only_memory)
    cases = {
        str(secret): "never opened",
        f"file://{secret}": "never opened",
        "data:image/svg+xml;base64,AAAA": "never opened",
        uri(Image.new("RGB", (2000, 10))): "2000 × 10 px",
        good.replace("png", "jpeg"): "no jpeg picture",
        good[:40]: "no png picture",
        "data:image/jpeg;base64,@@@": "no jpeg picture",
        "data:image/jpeg;base64," + "A" * LARGEST_TEXT: "characters",
        good: "",
    }
    for text, reason in cases.items():
        save_file(load_file(lora), lora, {KEY: text})
        assert reason in warned(lora) and (reason != "") == (warned(lora) != ""), text[:60]


def test_the_doctor_tells_in_json(lora: Path) -> None:
    save_file(load_file(lora), lora, {KEY: "/etc/passwd"})
    told = json.loads(CliRunner().invoke(app, ["doctor", str(lora), "--json"]).stdout)
    assert "thumbnail" in {finding["code"] for finding in told["files"][0]["findings"]}
