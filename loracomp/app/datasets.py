"""Training data: pictures and captions, uploaded or in the configured folders, by opaque ids."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.app import thumbnails
from loracomp.app.database import Database
from loracomp.app.refusals import LimitError, NotFoundError, public
from loracomp.app.settings import Settings
from loracomp.app.uploads import Uploads
from loracomp.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from loracomp.training.dataset import Dataset

_MOST = 2000
_CAPTION = 2000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp"}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS datasets (id TEXT PRIMARY KEY, user TEXT NOT NULL, name TEXT NOT NULL,
  folder TEXT NOT NULL, created REAL NOT NULL, UNIQUE (user, folder));
"""


@dataclass(frozen=True)
class DataRow:
    """Training data as a list shows them.

    Attributes:
        id: What they are asked for by.
        name: What they are called.
        pictures: How many there are.
        own: Whether the user uploaded them; pictures of others' folders are neither added nor removed.
    """

    id: str
    name: str
    pictures: int
    own: bool

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Captioned:
    """One training picture: its id, its file's name, its size in pixels and its caption."""

    id: str
    name: str
    width: int
    height: int
    caption: str

    def to_dict(self) -> dict[str, Any]:
        """The picture as plain JSON values."""
        return asdict(self)


class Datasets:
    """Folders of training data; those that the app was started with belong to everybody.

    Args:
        settings: The folders.
        database: Where they are listed.
        uploads: Where new pictures come from.
    """

    def __init__(self, settings: Settings, database: Database, uploads: Uploads) -> None:
        self._settings, self._database, self._uploads = settings, database, uploads
        self._folder = settings.folder("datasets")
        self._small = settings.folder("thumbnails")
        database.schema(_SCHEMA)

    def list(self, user: str) -> list[DataRow]:
        """A user's data and those of the configured folders, by name."""
        for folder in self._shared():
            self._database.run(
                "INSERT OR IGNORE INTO datasets VALUES (?, '', ?, ?, ?)",
                (secrets.token_hex(10), folder.name, str(folder), time.time()),
            )
        rows = self._database.rows(
            "SELECT * FROM datasets WHERE user IN ('', ?) ORDER BY name COLLATE NOCASE", (user,)
        )
        found = [(row, Path(row["folder"])) for row in rows]
        return [
            DataRow(row["id"], row["name"], len(pictures_of(folder)), row["user"] != "")
            for row, folder in found
            if folder.is_dir() and self._allowed(folder)
        ]

    def create(self, name: str, user: str) -> DataRow:
        """New, empty data of a user; raises :class:`UsageError` for a name without letters."""
        name = " ".join(name.split())[:80]
        if not name:
            raise UsageError("give the training data a name")
        id_ = secrets.token_hex(10)
        folder = self._folder / id_
        folder.mkdir(mode=0o700)
        self._database.run(
            "INSERT INTO datasets VALUES (?, ?, ?, ?, ?)", (id_, user, name, str(folder), time.time())
        )
        return DataRow(id_, name, 0, True)

    def path(self, id_: str, user: str, own: bool = False) -> Path:
        """The folder of data that a user may see, or ``own``; raises :class:`NotFoundError`."""
        row = self._database.row(
            "SELECT * FROM datasets WHERE id = ? AND user IN (?, ?)", (id_, user, user if own else "")
        )
        if row is None or not self._allowed(folder := Path(row["folder"])) or not folder.is_dir():
            raise NotFoundError("training data")
        return folder

    def add(self, id_: str, upload: str, user: str, caption: str = "") -> Captioned:
        """Takes an uploaded picture into a user's data.

        Raises:
            LimitError: There are 2,000 pictures already.
            UsageError: A picture of a kind that is not trained on.
        """
        from PIL import Image

        folder = self.path(id_, user, own=True)
        if len(pictures_of(folder)) >= _MOST:
            raise LimitError(f"{_MOST} pictures are taken at most")
        source = self._uploads.path(upload, user, "picture")
        with Image.open(source) as image:
            suffix = _FORMATS.get(image.format or "")
        if suffix is None:
            raise UsageError("training pictures are PNG, JPEG, WebP or BMP; save it as one of them")
        stem = Path(self._uploads.get(upload, user).name).stem[:60] or "picture"
        names = (stem, *(f"{stem}-{number}" for number in range(2, _MOST + 2)))
        taken = {path.stem for path in folder.iterdir()}
        target = folder / f"{next(name for name in names if name not in taken)}{suffix}"
        shutil.copyfile(source, target)
        if caption.strip():
            _write_caption(target, caption)
        return _captioned(target, caption.strip())

    def pictures(self, id_: str, user: str) -> Sequence[Captioned]:
        """The pictures with their captions.

        Raises:
            TrainingError: A picture or a caption that cannot be read.
        """
        folder = self.path(id_, user)
        if not pictures_of(folder):
            return []
        return [_captioned(p.path, p.caption or "", p.size) for p in self._read(folder).pictures]

    def caption(self, id_: str, picture: str, text: str, user: str) -> None:
        """Writes a caption; an empty one removes it."""
        _write_caption(_find(self.path(id_, user), picture), text)

    def thumbnail(self, id_: str, picture: str, user: str) -> Path:
        """A WebP file of at most 256 px of a picture."""
        source = _find(self.path(id_, user), picture)
        status = source.stat()
        key = hashlib.sha256(f"{source}{status.st_mtime_ns}{status.st_size}".encode()).hexdigest()[:32]
        small = self._small / f"data-{key}.webp"
        if not small.is_file() and not thumbnails.shrink(source, small):
            raise NotFoundError("picture")
        return small

    def drop(self, id_: str, picture: str, user: str) -> None:
        """Removes a picture and its caption from a user's own data."""
        path = _find(self.path(id_, user, own=True), picture)
        path.unlink()
        path.with_suffix(".txt").unlink(missing_ok=True)

    def remove(self, id_: str, user: str) -> None:
        """Deletes a user's own data."""
        folder = self.path(id_, user, own=True)
        self._database.run("DELETE FROM datasets WHERE id = ?", (id_,))
        shutil.rmtree(folder)

    def check(self, id_: str, user: str, resolution: int) -> dict[str, Any]:
        """What the data hold and what is worth mending; raises :class:`TrainingError`."""
        from loracomp.training.survey import describe

        found = describe(self._read(self.path(id_, user)))
        values = asdict(found) | {"advice": found.advice(resolution)}
        return {name: value for name, value in values.items() if name not in ("folder", "fingerprint")}

    def _read(self, folder: Path) -> Dataset:
        from loracomp.training.dataset import read_dataset

        try:
            return read_dataset(folder)
        except TrainingError as error:
            raise TrainingError(public(error)) from None

    def _shared(self) -> Iterator[Path]:
        """Configured folders with pictures in them, and folders with pictures in those."""
        for folder in self._settings.pictures:
            if folder.is_dir():
                inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
                yield from (path for path in (folder, *inside) if pictures_of(path))

    def _allowed(self, folder: Path) -> bool:
        place = folder.resolve()
        return any(place.is_relative_to(root) for root in (self._folder.resolve(), *self._settings.pictures))


def pictures_of(folder: Path) -> list[Path]:
    """Picture files of a folder, by name; links are left out."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def picture_id(path: Path) -> str:
    """What a picture is asked for by."""
    return hashlib.sha256(path.name.encode()).hexdigest()[:20]


def _find(folder: Path, picture: str) -> Path:
    for path in pictures_of(folder):
        if picture_id(path) == picture:
            return path
    raise NotFoundError("picture")


def _captioned(path: Path, caption: str, size: tuple[int, int] | None = None) -> Captioned:
    from PIL import Image

    if size is None:
        with Image.open(path) as image:
            size = image.size
    return Captioned(picture_id(path), path.name, size[0], size[1], caption)


def _write_caption(picture: Path, text: str) -> None:
    """Puts a caption where it is read from: the folder's table if it names the picture, else a text file."""
    from loracomp.formats.writing import write_atomically
    from loracomp.training.dataset import CAPTION_TABLE

    text = " ".join(text.split())[:_CAPTION]
    table = picture.parent / CAPTION_TABLE
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    if any(row.get("file_name") == picture.name for row in rows):
        changed = [row | ({"text": text} if row.get("file_name") == picture.name else {}) for row in rows]
        write_atomically(table, [f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in changed])
    elif text:
        write_atomically(picture.with_suffix(".txt"), [text.encode()])
    else:
        picture.with_suffix(".txt").unlink(missing_ok=True)
