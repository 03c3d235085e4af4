"""Data folders: captions, errors in one line, fingerprints; pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from loracomp.errors import TrainingError
from loracomp.training.dataset import read_dataset
from loracomp.training.pixels import load_pixels
from loracomp.training.survey import survey


def test_sidecars_are_captions(folder: Path) -> None:
    data = read_dataset(folder)
    assert [p.path.name for p in data.pictures] == ["0.png", "1.png", "2.png", "3.png"]
    assert data.pictures[2].caption == "a circle of size 2, ink style"


def test_a_caption_table_wins_over_sidecars(folder: Path) -> None:
    rows = [{"file_name": "1.png", "text": "ünïcode  circle"}, {"file_name": "2.png", "text": "two"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    captions = [p.caption for p in read_dataset(folder).pictures]
    assert captions[1:3] == ["ünïcode circle", "two"]
    assert captions[0] == "a circle of size 0, ink style"


def test_trigger_words_are_put_before_captions_without_them(folder: Path) -> None:
    (folder / "3.txt").unlink()
    data = read_dataset(folder)
    plain = data.captions(("ink style",), "ink")
    assert plain[:2] == ["a circle of size 0, ink style", "a circle of size 1, ink style"]
    assert plain[3] == "ink style"
    assert data.captions(("sks",), "ink")[0] == "sks, a circle of size 0, ink style"
    assert data.captions((), "ink")[3] == "ink"


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _nested(folder: Path) -> None:
    (folder / "deep").mkdir()
    for file in folder.glob("*.png"):
        file.rename(folder / "deep" / file.name)


FAULTS: dict[str, Callable[[Path], object]] = {
    "no pictures in it (looked for": _empty,
    "deep has some": _nested,
    "0.png: cannot be read as a picture": lambda f: (f / "0.png").write_bytes(
        (f / "0.png").read_bytes()[:60]
    ),
    "1.png: cannot be read as a picture": lambda f: (f / "1.png").write_text("hello"),
    "2.txt: cannot be read as UTF-8": lambda f: (f / "2.txt").write_bytes(b"\xff\xfe\x00"),
    "metadata.jsonl, line 2: needs an object": lambda f: (f / "metadata.jsonl").write_text('\n{"file": 1}'),
    "line 1: file_name and text must be strings": lambda f: (f / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": 3}'
    ),
    "names 9.png, which is not in the folder": lambda f: (f / "metadata.jsonl").write_text(
        '{"file_name": "9.png", "text": "nine"}'
    ),
    "manifest.json: needs a list": lambda f: (f / "manifest.json").write_text('{"a": 1}'),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_named_in_one_line(folder: Path, message: str) -> None:
    FAULTS[message](folder)
    with pytest.raises(TrainingError) as caught:
        read_dataset(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such folder"):
        read_dataset(tmp_path / "none")


def test_fingerprint_follows_pictures_and_captions(folder: Path) -> None:
    before = read_dataset(folder).fingerprint
    assert read_dataset(folder).fingerprint == before
    (folder / "0.txt").write_text("another caption")
    recaptioned = read_dataset(folder).fingerprint
    Image.new("RGB", (32, 32)).save(folder / "1.png")
    repainted = read_dataset(folder).fingerprint
    assert len({before, recaptioned, repainted}) == 3


def test_survey(folder: Path) -> None:
    (folder / "3.txt").unlink()
    (folder / "4.png").write_bytes((folder / "0.png").read_bytes())
    Image.new("RGB", (64, 20)).save(folder / "5.jpg")
    rows = [
        {"file": "0.png", "subject": "circle", "style": "ink"},
        {"file": "9.png", "subject": "x", "style": "y"},
    ]
    (folder / "manifest.json").write_text(json.dumps(rows))
    found = survey(folder)
    assert (found.pictures, found.captioned, found.cells) == (6, 3, 1)
    assert found.without_caption == ("3.png", "4.png", "5.jpg")
    assert found.duplicates == (("0.png", "4.png"),)
    assert found.sizes == (((32, 32), 5), ((64, 20), 1))
    assert found.words[0] == ("ink style", 3)
    advice = " / ".join(found.advice(32))
    for part in (
        "3.png, 4.png, 5.jpg without a caption",
        "0.png, 4.png",
        "1 smaller than 32",
        "1 not square",
    ):
        assert part in advice
    assert "smaller" not in " ".join(found.advice(20))


def test_transparency_becomes_white_and_the_middle_is_kept(tmp_path: Path) -> None:
    image = Image.new("RGBA", (48, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (16, 0, 32, 16))
    image.save(tmp_path / "a.png")
    pixels = load_pixels(tmp_path / "a.png", 16)
    assert torch.equal(pixels, torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 16, 16))
    Image.new("LA", (16, 16), (0, 0)).save(tmp_path / "b.png")
    assert torch.equal(load_pixels(tmp_path / "b.png", 16), torch.ones(3, 16, 16))


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste((255, 255, 255), (0, 0, 16, 8))
    tags = Image.Exif()
    tags[274] = 3  # upside down
    image.save(tmp_path / "a.png", exif=tags)
    pixels = load_pixels(tmp_path / "a.png", 16)
    assert float(pixels[:, :8].mean()) == -1.0
    assert float(pixels[:, 8:].mean()) == 1.0
