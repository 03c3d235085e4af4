"""Key files: readable by their owner alone, never overwritten, never quoted in a message."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from loracomp.errors import FormatError, ResourceError, UsageError
from loracomp.watermark.keys import Key, OwnerKey

OWNER = "loracomp-watermark-owner/1"
ISSUED = "loracomp-watermark-key/1"
PUBLIC = "loracomp-watermark-public/1"
LARGEST = 1 << 16
_ARTEFACTS = (".safetensors", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".json")


def write_owner(path: Path, key: OwnerKey) -> Path:
    """Writes a master key; raises :class:`UsageError` where there is a file already."""
    return _write(path, {"format": OWNER, "secret": _text(key.master)})


def write_key(path: Path, key: Key) -> Path:
    """Writes an issued key; raises :class:`UsageError` where there is a file already."""
    facts = {"lora": key.lora, "user": key.user, "counter": key.counter, "bits": key.bits}
    return _write(path, {"format": ISSUED, **facts, "secret": _text(key.secret)})


def read_owner(path: Path) -> OwnerKey:
    """The master key in a file; raises as :func:`read_key` does."""
    table = _read(path)
    if table.get("format") != OWNER:
        raise UsageError(f"{path}: no owner's key; make one with `loracomp watermark keygen --out owner.key`")
    return OwnerKey(_secret(path, table))


def read_key(path: Path) -> Key:
    """The issued key in a file.

    Raises:
        ResourceError: There is no such file.
        UsageError: Others may read it, or it came inside an artefact, or it is another kind of key.
        FormatError: It is damaged.
    """
    table = _read(path)
    kind = table.get("format")
    if kind == OWNER:
        raise UsageError(
            f"{path}: an owner's key, which stays at home; issue one for this LoRA with `loracomp watermark "
            f"keygen --owner {path.name} --lora NAME --out NAME.key`"
        )
    if kind == PUBLIC:
        raise UsageError(f"{path}: a public key verifies manifests alone; give the .key file")
    if kind != ISSUED:
        raise FormatError(f"{path}: no key file; make one with `loracomp watermark keygen`")
    lora, user, counter, bits = (table.get(name) for name in ("lora", "user", "counter", "bits"))
    texts = isinstance(lora, str) and isinstance(user, str)
    if not (texts and isinstance(counter, int) and isinstance(bits, int) and 8 <= bits <= 256):
        raise FormatError(f"{path}: damaged key file; restore it, or issue it anew from the owner's key")
    return Key(str(lora), str(user), counter, bits, _secret(path, table))


def is_owner(path: Path) -> bool:
    """Whether a file is an owner's key; raises as :func:`read_key` does."""
    return _read(path).get("format") == OWNER


def read_public(path: Path) -> bytes:
    """The 32 bytes of a trusted public key; raises as :func:`read_key` does."""
    table = _read(path, private=False)
    if table.get("format") != PUBLIC:
        raise FormatError(f"{path}: no public key; give the .pub file that keygen wrote")
    return _secret(path, table, "ed25519")


def write_public(path: Path, public: bytes, key: Key) -> Path:
    """Writes what others need to check manifests: the public key and the commitment. Others may read it."""
    table = {"format": PUBLIC, "lora": key.lora, "ed25519": _text(public), "commitment": key.commitment}
    return _write(path, table, 0o644)


def _write(path: Path, table: dict[str, Any], mode: int = 0o600) -> Path:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise UsageError(f"{path}: exists; keys are never overwritten, choose another name") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(table, indent=1) + "\n")
    return path


def _read(path: Path, private: bool = True) -> dict[str, Any]:
    if path.suffix.lower() in _ARTEFACTS:
        raise UsageError(
            f"{path}: a key that comes with what it is to prove proves nothing; give the key that you keep"
        )
    try:
        mode = path.stat().st_mode & 0o777
        if private and os.name == "posix" and mode & 0o077:
            raise UsageError(f"{path}: others may read it (mode {mode:o}); run `chmod 600 {path}`")
        raw = path.read_bytes()[: LARGEST + 1]
    except FileNotFoundError:
        raise ResourceError(f"{path}: no such key file; make one with `loracomp watermark keygen`") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        table = json.loads(raw.decode("utf-8")) if len(raw) <= LARGEST else None
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise FormatError(f"{path}: no key file; make one with `loracomp watermark keygen`")
    return table


def _secret(path: Path, table: dict[str, Any], name: str = "secret") -> bytes:
    try:
        raw = base64.b64decode(str(table.get(name, "")), validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise FormatError(f"{path}: damaged key file; restore it, or issue it anew from the owner's key")
    return raw


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
