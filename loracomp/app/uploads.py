"""Files that users send: counted while they arrive, checked when they are there, found by id alone."""

from __future__ import annotations

import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from loracomp.app.database import Database
from loracomp.app.refusals import LimitError, NotFoundError, TooLargeError
from loracomp.app.settings import Settings
from loracomp.errors import FormatError, UnknownNameError

KEPT_S = 7 * 86400.0
KEY_BYTES = 1 << 16
MOST_PIXELS = 1 << 26
_NAME = 120
_CHUNK = 1 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (id TEXT PRIMARY KEY, user TEXT NOT NULL, kind TEXT NOT NULL,
  name TEXT NOT NULL, bytes INTEGER NOT NULL, created REAL NOT NULL);
"""


@dataclass(frozen=True)
class Uploaded:
    """A file that a user sent.

    Attributes:
        id: What it is asked for by.
        kind: ``adapter``, ``picture`` or ``key``.
        name: What it was called, without folders.
        bytes: Its size.
    """

    id: str
    kind: str
    name: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The upload as plain JSON values."""
        return asdict(self)


class Uploads:
    """Files that users sent, in a folder of the app's own.

    Args:
        settings: Limits, and where the folder lies.
        database: Where they are listed.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._limits, self._database = settings.limits, database
        self._folder = settings.folder("uploads")
        database.schema(_SCHEMA)

    def receive(self, name: str, kind: str, user: str) -> Receiver:
        """A file that is about to arrive.

        Raises:
            UnknownNameError: No such kind.
            LimitError: The user's uploads take as much room as they may.
        """
        if kind not in _CHECKS:
            raise UnknownNameError("kind of upload", kind, _CHECKS)
        row = self._database.row("SELECT SUM(bytes) AS n FROM uploads WHERE user = ?", (user,))
        room = self._limits.user_bytes - ((row["n"] if row else 0) or 0)
        if room <= 0:
            raise LimitError("your uploads take as much room as they may; they are removed after a week")
        most = {"picture": self._limits.picture_bytes, "key": KEY_BYTES}.get(kind, self._limits.upload_bytes)
        id_ = secrets.token_urlsafe(18)
        return Receiver(self, id_, plain_name(name), kind, user, self._folder / id_, min(most, room))

    def take(self, path: Path, kind: str, user: str, name: str = "") -> Uploaded:
        """Copies a file that is on this machine, within the same limits; raises as :meth:`receive`."""
        with path.open("rb") as file, self.receive(name or path.name, kind, user) as receiver:
            while chunk := file.read(_CHUNK):
                receiver.write(chunk)
            return receiver.finish()

    def path(self, id_: str, user: str, kind: str = "") -> Path:
        """The file of a user's upload; raises :class:`NotFoundError`."""
        self.get(id_, user, kind)
        return self._folder / id_

    def get(self, id_: str, user: str, kind: str = "") -> Uploaded:
        """A user's upload; raises :class:`NotFoundError`."""
        row = self._database.row(
            "SELECT * FROM uploads WHERE id = ? AND user = ? AND (? = '' OR kind = ?)",
            (id_, user, kind, kind),
        )
        if row is None or not (self._folder / row["id"]).is_file():
            raise NotFoundError("upload")
        return Uploaded(row["id"], row["kind"], row["name"], row["bytes"])

    def remove(self, id_: str, user: str) -> None:
        """Deletes a user's upload; raises :class:`NotFoundError`."""
        path = self.path(id_, user)
        self._database.run("DELETE FROM uploads WHERE id = ?", (id_,))
        path.unlink(missing_ok=True)

    def expire(self) -> None:
        """Removes what is older than a week, and what is in the folder without being listed."""
        self._database.run("DELETE FROM uploads WHERE created < ?", (time.time() - KEPT_S,))
        listed = {row["id"] for row in self._database.rows("SELECT id FROM uploads")}
        for path in self._folder.iterdir():
            if path.name not in listed:
                path.unlink(missing_ok=True)

    def keep(self, uploaded: Uploaded, user: str) -> None:
        """Lists a file that has arrived."""
        self._database.run(
            "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?)",
            (uploaded.id, user, uploaded.kind, uploaded.name, uploaded.bytes, time.time()),
        )


class Receiver:
    """One file while it arrives; left without :meth:`finish`, nothing stays of it."""

    def __init__(
        self, uploads: Uploads, id_: str, name: str, kind: str, user: str, path: Path, most: int
    ) -> None:
        self._uploads, self._path, self._most, self._bytes = uploads, path, most, 0
        self._id, self._name, self._kind, self._user = id_, name, kind, user
        self._done = False
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file: BinaryIO = os.fdopen(handle, "wb")

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *about: object) -> None:
        self._file.close()
        if not self._done:
            self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes; raises :class:`TooLargeError` with the first one too many."""
        self._bytes += len(chunk)
        if self._bytes > self._most:
            raise TooLargeError(f"{self._name}: larger than {self._most:,} bytes, which is the limit here")
        self._file.write(chunk)

    def finish(self) -> Uploaded:
        """Checks the whole file and keeps it; raises :class:`FormatError` where it is not what it claims."""
        self._file.close()
        try:
            _CHECKS[self._kind](self._path, self._name)
        except FormatError as error:
            line = str(error).replace(str(self._path), self._name).replace(self._path.name, self._name)
            raise FormatError(line) from None
        uploaded = Uploaded(self._id, self._kind, self._name, self._bytes)
        self._uploads.keep(uploaded, self._user)
        self._done = True
        return uploaded


def plain_name(name: str) -> str:
    """The last part of whatever path a client gave, printable and not too long."""
    last = PurePosixPath(PureWindowsPath(name).as_posix()).name
    shown = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(". ")
    return shown[-_NAME:] or "upload"


def _check_adapter(path: Path, name: str) -> None:
    from loracomp.formats.source import Source

    with Source(path):
        pass


def _check_picture(path: Path, name: str) -> None:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise FormatError(f"{name}: {image.width}x{image.height} pixels are too many; shrink it")
                image.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise FormatError(f"{name}: not a picture that can be read; give a PNG, JPEG or WebP") from None


def _check_key(path: Path, name: str) -> None:
    from loracomp.watermark.keyfile import ISSUED, OWNER, is_owner, read_key, read_owner

    named = {OWNER: read_owner, ISSUED: read_key}
    named[OWNER if is_owner(path) else ISSUED](path)


_CHECKS: Mapping[str, Callable[[Path, str], None]] = {
    "adapter": _check_adapter,
    "picture": _check_picture,
    "key": _check_key,
}
