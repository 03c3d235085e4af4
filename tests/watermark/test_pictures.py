"""Pictures of every kind that arrives, and those that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from loracomp.errors import FormatError, ResourceError
from loracomp.watermark.pictures import read_pictures


def picture(size: int = 64, seed: int = 0) -> Image.Image:
    image = Image.new("RGB", (size, size), "white")
    box = (4 + seed, 6, size // 2 + 4 * seed, size - 8)
    ImageDraw.Draw(image).ellipse(box, fill=(200 - 30 * seed, 40 * seed, 90))
    return image


def test_all_modes_are_read(tmp_path: Path) -> None:
    plain = picture()
    files = []
    for mode, name in (("RGB", "a.png"), ("L", "b.png"), ("CMYK", "c.jpg"), ("P", "d.png"), ("1", "e.png")):
        plain.convert(mode).save(tmp_path / name)
        files.append(tmp_path / name)
    gray = np.asarray(plain.convert("L")).astype(np.uint16) * 257
    Image.fromarray(gray).save(tmp_path / "f.png")
    rgba = picture(seed=3).convert("RGBA")
    rgba.putalpha(picture(seed=3).convert("L").point(lambda v: 0 if v > 250 else 255))
    rgba.save(tmp_path / "g.png")
    frames = [picture(seed=n) for n in (1, 2)]
    frames[0].save(tmp_path / "h.gif", save_all=True, append_images=frames[1:])
    files += [tmp_path / name for name in ("f.png", "g.png", "h.gif")]
    single = [read_pictures([file], 32) for file in files]
    assert all(found.pixels.shape == (1, 3, 32, 32) for found in single)
    assert all(0 <= float(found.pixels.min()) <= float(found.pixels.max()) <= 1 for found in single)
    notes = " | ".join(note for found in single for note in found.notes)
    for word in ("CMYK converted", "L converted", "16-bit", "laid over white", "first of 2 frames"):
        assert word in notes
    assert float((single[1].pixels - single[5].pixels).abs().max()) < 0.02  # 16 bits like 8 bits


def test_repetitions_count_once(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "b.png", compress_level=1)
    picture().save(tmp_path / "c.jpg", quality=60)
    picture().resize((128, 128), Image.Resampling.BICUBIC).save(tmp_path / "d.png")
    picture(seed=1).save(tmp_path / "e.png")
    found = read_pictures([tmp_path / name for name in ("a.png", "b.png", "c.jpg", "d.png", "e.png")], 64)
    assert [Path(name).name for name in found.names] == ["a.png", "e.png"]
    assert {Path(name).name for name, _ in found.duplicates} == {"b.png", "c.jpg", "d.png"}


def test_small_pictures_are_counted(tmp_path: Path) -> None:
    picture(24).save(tmp_path / "a.png")
    picture(200, 2).save(tmp_path / "b.png")
    assert read_pictures([tmp_path / "a.png", tmp_path / "b.png"], 64).small == 1


def test_bad_files_are_named(tmp_path: Path) -> None:
    picture().resize((8, 30)).save(tmp_path / "tiny.png")
    picture().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name, reason in (
        ("tiny.png", "too small"), ("cut.png", "truncated"), ("text.png", "no picture"),
        ("empty.png", "no picture"),
    ):  # fmt: skip
        with pytest.raises(FormatError, match=f"{name}: .*{reason}"):
            read_pictures([tmp_path / name], 64)
    with pytest.raises(ResourceError, match="no such picture"):
        read_pictures([tmp_path / "none.png"], 64)
    with pytest.raises(FormatError, match="damaged"):
        read_pictures([tmp_path], 64)
