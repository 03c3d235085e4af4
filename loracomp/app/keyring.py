"""Watermark keys of users: made, issued and kept here, readable by the app alone, found by id."""

from __future__ import annotations

import secrets
import shutil
import sqlite3
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.app.database import Database
from loracomp.app.refusals import LimitError, NotFoundError
from loracomp.app.settings import Settings
from loracomp.app.uploads import Uploads
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.watermark.keys import Key

_MOST = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, user TEXT NOT NULL, kind TEXT NOT NULL,
  lora TEXT NOT NULL, recipient TEXT NOT NULL, bits INTEGER NOT NULL, created REAL NOT NULL);
"""


@dataclass(frozen=True)
class KeyRow:
    """A key as a list shows it; nothing in it is secret.

    Attributes:
        id: What it is asked for by.
        kind: ``owner`` or ``issued``.
        lora: Name of the LoRA that it is for; empty for an owner's key.
        recipient: Whom the copy is for; empty for oneself.
        bits: Length of its message; 0 for an owner's key.
    """

    id: str
    kind: str
    lora: str
    recipient: str
    bits: int

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return asdict(self)


class Keyring:
    """Keys by user.

    Args:
        settings: Where they lie.
        database: Where they are listed.
        uploads: Where keys made elsewhere come from.
    """

    def __init__(self, settings: Settings, database: Database, uploads: Uploads) -> None:
        self._database, self._uploads, self._folder = database, uploads, settings.folder("keys")
        database.schema(_SCHEMA)

    def list(self, user: str) -> list[KeyRow]:
        """A user's keys, the owner's first."""
        rows = self._database.rows(
            "SELECT * FROM keys WHERE user = ? ORDER BY kind = 'issued', lora COLLATE NOCASE, recipient",
            (user,),
        )
        return [_row(row) for row in rows]

    def get(self, id_: str, user: str) -> KeyRow:
        """A user's key; raises :class:`NotFoundError`."""
        row = self._database.row("SELECT * FROM keys WHERE id = ? AND user = ?", (id_, user))
        if row is None:
            raise NotFoundError("key")
        return _row(row)

    def path(self, id_: str, user: str, kind: str = "issued") -> Path:
        """The file of a user's key; raises :class:`NotFoundError` for one of another kind, too."""
        if self.get(id_, user).kind != kind:
            raise NotFoundError("key of this kind")
        return self._folder / f"{id_}.key"

    def create(self, user: str) -> KeyRow:
        """A new owner's key; raises :class:`UsageError` where the user has one."""
        from loracomp.watermark.keyfile import write_owner
        from loracomp.watermark.keys import OwnerKey

        if any(key.kind == "owner" for key in self.list(user)):
            raise UsageError("you have an owner's key already; issue keys from it")
        id_ = secrets.token_hex(12)
        write_owner(self._folder / f"{id_}.key", OwnerKey.create())
        return self._keep(id_, user, "owner")

    def issue(self, lora: str, user: str, recipient: str = "", bits: int = 32) -> KeyRow:
        """The key of one LoRA, and of one recipient's copy, from the user's owner's key.

        Raises:
            UsageError: There is no owner's key, no name, or this key was issued already.
        """
        from loracomp.watermark.keyfile import read_key, read_owner, write_key, write_public
        from loracomp.watermark.signing import public_key

        lora, recipient = " ".join(lora.split())[:120], " ".join(recipient.split())[:120]
        owners = [key for key in self.list(user) if key.kind == "owner"]
        issued = [key for key in self.list(user) if key.kind == "issued"]
        if not owners or not lora:
            raise UsageError("make an owner's key first" if lora else "say which LoRA the key is for")
        if any((key.lora, key.recipient) == (lora, recipient) for key in issued):
            raise UsageError(f"the key of {lora} was issued already; it is in the list")
        others = [read_key(self.path(key.id, user)) for key in issued]
        owner = read_owner(self.path(owners[0].id, user, "owner"))
        key = owner.issue(lora, recipient, bits, others)
        id_ = secrets.token_hex(12)
        write_key(self._folder / f"{id_}.key", key)
        write_public(self._folder / f"{id_}.pub", public_key(key.signing_seed), key)
        return self._keep(id_, user, "issued", lora, recipient, bits)

    def take(self, upload: str, user: str) -> KeyRow:
        """Keeps a key file that was made elsewhere; raises :class:`FormatError` where it is none."""
        from loracomp.watermark.keyfile import is_owner, read_key, write_public
        from loracomp.watermark.signing import public_key

        source = self._uploads.path(upload, user, "key")
        id_ = secrets.token_hex(12)
        target = self._folder / f"{id_}.key"
        if is_owner(source):
            if any(key.kind == "owner" for key in self.list(user)):
                raise UsageError("you have an owner's key already; remove it first")
            facts: tuple[Any, ...] = ("owner",)
        else:
            key = read_key(source)
            write_public(self._folder / f"{id_}.pub", public_key(key.signing_seed), key)
            facts = ("issued", key.lora, key.user, key.bits)
        shutil.copyfile(source, target)
        target.chmod(0o600)
        self._uploads.remove(upload, user)
        return self._keep(id_, user, *facts)

    def secret(self, id_: str, user: str) -> Key:
        """An issued key, opened."""
        from loracomp.watermark.keyfile import read_key

        return read_key(self.path(id_, user))

    def file(self, id_: str, user: str, public: bool = False) -> Path:
        """The key file for a backup, or what others need to check manifests with."""
        kind = self.get(id_, user).kind
        if public:
            return self.path(id_, user).with_suffix(".pub")
        return self.path(id_, user, kind)

    def remove(self, id_: str, user: str) -> None:
        """Deletes a user's key for good."""
        self.get(id_, user)
        self._database.run("DELETE FROM keys WHERE id = ?", (id_,))
        for suffix in ("key", "pub"):
            (self._folder / f"{id_}.{suffix}").unlink(missing_ok=True)

    def _keep(
        self, id_: str, user: str, kind: str, lora: str = "", recipient: str = "", bits: int = 0
    ) -> KeyRow:
        if len(self.list(user)) >= _MOST:
            raise LimitError(f"{_MOST} keys are kept at most; remove one")
        self._database.run(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)",
            (id_, user, kind, lora, recipient, bits, time.time()),
        )
        return self.get(id_, user)


def _row(row: sqlite3.Row) -> KeyRow:
    return KeyRow(row["id"], row["kind"], row["lora"], row["recipient"], row["bits"])
