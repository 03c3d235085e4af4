"""A folder of pictures and captions as a value: what a run learns from, and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loracomp.errors import TrainingError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_TABLE = "metadata.jsonl"
CELL_TABLE = "manifest.json"


@dataclass(frozen=True)
class Picture:
    """One training picture.

    Attributes:
        path: Its file.
        digest: SHA-256 of the file's bytes.
        size: Width and height in pixels.
        caption: Its caption; None where none was found.
    """

    path: Path
    digest: str
    size: tuple[int, int]
    caption: str | None


@dataclass(frozen=True)
class Dataset:
    """Pictures sorted by file name, and what they show if the folder says so.

    Attributes:
        folder: The folder they lie in.
        pictures: At least one picture.
        cells: Sorted (subject, style) pairs of the folder's ``manifest.json``; empty without one.
    """

    folder: Path
    pictures: tuple[Picture, ...]
    cells: tuple[tuple[str, str], ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over file names, contents and captions: equal for equal data."""
        rows = [[p.path.name, p.digest, p.caption] for p in self.pictures]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def captions(self, trigger: Iterable[str], fallback: str) -> list[str]:
        """One caption per picture: trigger words stand in front of captions that hold none of them.

        Args:
            trigger: Words that call the adapter.
            fallback: Caption of pictures without one where there are no trigger words.
        """
        words = tuple(trigger)
        phrase = ", ".join(words)
        texts = []
        for picture in self.pictures:
            text = picture.caption or ""
            if not any(word.lower() in text.lower() for word in words):
                text = ", ".join(part for part in (phrase, text) if part)
            texts.append(text or fallback)
        return texts


def read_dataset(folder: Path) -> Dataset:
    """The training data of a folder.

    Captions come from ``metadata.jsonl`` (objects with ``file_name`` and ``text``) and, for pictures
    that it does not name, from a text file of the picture's name.

    Raises:
        TrainingError: No folder, no pictures, a picture or table that cannot be read.
    """
    files = _picture_files(folder)
    table = _caption_table(folder / CAPTION_TABLE)
    lost = sorted(set(table) - {file.name for file in files})
    if lost:
        raise TrainingError(f"{folder / CAPTION_TABLE}: names {lost[0]}, which is not in the folder")
    pictures = tuple(_picture(file, table) for file in files)
    return Dataset(folder, pictures, _cells(folder / CELL_TABLE, {file.name for file in files}))


def _picture_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; name a folder of pictures with .txt captions")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if files:
        return files
    deeper = sorted({p.parent for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES})
    hint = f"; {deeper[0]} has some" if deeper else f" (looked for {', '.join(SUFFIXES)})"
    raise TrainingError(f"{folder}: no pictures in it{hint}")


def _picture(file: Path, table: Mapping[str, str]) -> Picture:
    from PIL import Image

    try:
        data = file.read_bytes()
        with Image.open(file) as image:
            image.load()
            size = image.size
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
        raise TrainingError(
            f"{file}: cannot be read as a picture ({_first_line(error)}); mend or remove it"
        ) from None
    return Picture(file, hashlib.sha256(data).hexdigest(), size, table.get(file.name) or _sidecar(file))


def _sidecar(file: Path) -> str | None:
    text_file = file.with_suffix(".txt")
    if not text_file.is_file():
        return None
    try:
        return " ".join(text_file.read_text(encoding="utf-8").split()) or None
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{text_file}: cannot be read as UTF-8 text ({_first_line(error)})") from None


def _caption_table(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    table: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read as UTF-8 text ({_first_line(error)})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
        except (ValueError, KeyError, TypeError):
            raise TrainingError(f"{path}, line {number}: needs an object with file_name and text") from None
        if not isinstance(name, str) or not isinstance(text, str):
            raise TrainingError(f"{path}, line {number}: file_name and text must be strings")
        table[name] = " ".join(text.split())
    return table


def _cells(path: Path, names: set[str]) -> tuple[tuple[str, str], ...]:
    if not path.is_file():
        return ()
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return tuple(sorted({(str(r["subject"]), str(r["style"])) for r in rows if r["file"] in names}))
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(f"{path}: needs a list of objects with file, subject and style") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
