"""The weight-level proof: a signed manifest in a LoRA's header and beside it.

A signature says that these tensors are the owner's; it is lost in most re-saves and says nothing of pictures.
The mark in the pictures stays when it is gone. The two are reported separately.

Header strings: ``loracomp.watermark.manifest`` (canonical JSON), ``loracomp.watermark.signature`` (base64).
``loracomp merge`` keeps both of every parent in ``loracomp.parent_manifests``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from loracomp.errors import FormatError, UsageError
from loracomp.formats.source import Source
from loracomp.watermark.canonical import canonical, decimal, tensor_digest
from loracomp.watermark.header import with_strings
from loracomp.watermark.keys import Key
from loracomp.watermark.signing import print_of, public_key, sign, signed_by

MANIFEST = "loracomp.watermark.manifest"
SIGNATURE = "loracomp.watermark.signature"
LINEAGE = "loracomp.lineage"
PARENTS = "loracomp.parent_manifests"
SCHEMA = 1
Status = Literal["valid", "untrusted", "other tensors", "forged", "damaged", "none"]
BAD: tuple[Status, ...] = ("other tensors", "forged", "damaged")


@dataclass(frozen=True)
class Proof:
    """What a LoRA's manifest is worth.

    Attributes:
        status: ``valid``: signed by the trusted key, for these tensors. ``untrusted``: signed, but nobody
            named a key to trust. ``other tensors``: signed by the trusted key for other tensors. ``forged``:
            not signed by the trusted key. ``damaged``: no manifest that can be read. ``none``: there is none.
        signer: Print of the key that it names.
        manifest: Its contents; empty where it cannot be read.
        parents: The same for each parent of a merged file, whose tensors are not here.
        embedded_key: Whether the file brings a public key of its own, which proves nothing.
    """

    status: Status
    signer: str
    manifest: dict[str, Any]
    parents: tuple[Parent, ...] = ()
    embedded_key: bool = False

    @property
    def commitment(self) -> str:
        """The commitment that it states; empty where it states none."""
        return str(self.manifest.get("commitment", ""))

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Parent:
    """A parent's manifest in a merged file: its signature covers the parent's tensors, not these."""

    hash: str
    lora: str
    signer: str
    status: Status


def make_manifest(path: Path, key: Key, *, base_digest: str = "", **facts: Any) -> dict[str, Any]:
    """The public manifest of a LoRA file; ``facts`` (method, extractor, power, …) join it, floats as text."""
    with Source(path) as file:
        metadata = dict(file.metadata)
    stated = {
        "schema": SCHEMA,
        "lora": key.lora,
        "bits": key.bits,
        "tensors": tensor_digest(path),
        "base": metadata.get("modelspec.architecture", ""),
        "base_digest": base_digest,
        "commitment": key.commitment,
        "signer": print_of(public_key(key.signing_seed)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "license": metadata.get("modelspec.license", ""),
        "parents": _parents(metadata),
    }
    return stated | {name: _texts(value) for name, value in facts.items()}


def _parents(metadata: Mapping[str, str]) -> list[dict[str, str]]:
    """Parents of a merged file from its lineage, with weights as text."""
    lineage = _json(metadata.get(LINEAGE, ""))
    found = lineage.get("parents") if isinstance(lineage, dict) else None
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return [
        {
            "name": str(row.get("name", "")),
            "hash": str(row.get("hash", "")),
            "weight": str(row.get("weight", "")),
        }
        for row in rows
    ]


def sign_file(path: Path, key: Key, **facts: Any) -> Proof:
    """Signs a LoRA file: manifest and signature into its header and into ``NAME.manifest.json`` beside it.

    Raises:
        FormatError: It is no LoRA file.
        UsageError: It cannot be written.
    """
    manifest = make_manifest(path, key, **facts)
    raw = canonical(manifest)
    signature = base64.b64encode(sign(key.signing_seed, raw)).decode()
    with_strings(path, {MANIFEST: raw.decode(), SIGNATURE: signature})
    detached_path(path).write_text(json.dumps({"manifest": raw.decode(), "signature": signature}) + "\n")
    return check_file(path, public_key(key.signing_seed))


def add_power(path: Path, key: Key, power: Sequence[Mapping[str, float]], gain: float) -> Proof:
    """Signs a file anew with its power curve: at which strength how many pictures suffice.

    Raises:
        UsageError: The file was not signed by this key, or its tensors changed since.
    """
    proof = check_file(path, public_key(key.signing_seed))
    if proof.status != "valid":
        raise UsageError(f"{path}: manifest {proof.status}; embed the mark anew, or give the file's own key")
    kept = {
        name: value for name, value in proof.manifest.items() if name in ("method", "settings", "extractor")
    }
    return sign_file(path, key, **kept, power=power, gain=gain)


def detached_path(path: Path) -> Path:
    """Where the detached copy lies."""
    return path.with_suffix(".manifest.json")


def check_file(path: Path, trusted: bytes | None, detached: Path | None = None) -> Proof:
    """What the manifest of a LoRA file proves.

    Args:
        path: The file.
        trusted: Public key (32 bytes) known from elsewhere; None where there is none.
        detached: A detached copy to check instead of the header.

    Raises:
        FormatError: The file is no LoRA file, or the detached copy cannot be read.
    """
    with Source(path) as file:
        metadata = dict(file.metadata)
    text, signature = metadata.get(MANIFEST), metadata.get(SIGNATURE, "")
    if detached is not None:
        text, signature = _detached(detached)
    own = any(word in name for name in metadata for word in ("public_key", "watermark.key", "ed25519"))
    parents = tuple(_parent_proofs(metadata, trusted))
    if text is None:
        return Proof("none", "", {}, parents, own)
    manifest, raw = _manifest(text)
    if manifest is None:
        return Proof("damaged", "", {}, parents, own)
    status = _status(raw, signature, trusted)
    if status == "valid" and manifest.get("tensors") != tensor_digest(path):
        status = "other tensors"
    own = own or "public_key" in manifest
    return Proof(status, str(manifest.get("signer", "")), manifest, parents, own)


def _status(raw: bytes, signature: str, trusted: bytes | None) -> Status:
    try:
        given = base64.b64decode(signature, validate=True)
    except ValueError:
        return "damaged"
    if trusted is None:
        return "untrusted"
    return "valid" if signed_by(trusted, given, raw) else "forged"


def _manifest(text: str) -> tuple[dict[str, Any] | None, bytes]:
    """The manifest, and its bytes if these are canonical; another spelling counts as damage."""
    value, raw = _json(text), text.encode()
    try:
        good = isinstance(value, dict) and canonical(value) == raw and value.get("schema") == SCHEMA
    except (ValueError, RecursionError):
        good = False
    return (value, raw) if good else (None, raw)


def _detached(path: Path) -> tuple[str, str]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return str(table["manifest"]), str(table["signature"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{path}: no detached manifest; give the .manifest.json beside the LoRA") from None


def _parent_proofs(metadata: Mapping[str, str], trusted: bytes | None) -> list[Parent]:
    rows = _json(metadata.get(PARENTS, ""))
    out = []
    for row in rows if isinstance(rows, list) else []:
        entries = row.get("entries") if isinstance(row, dict) else None
        if not isinstance(entries, dict) or MANIFEST not in entries:
            continue
        manifest, raw = _manifest(str(entries[MANIFEST]))
        if manifest is None:
            out.append(Parent(str(row.get("parent", "")), "", "", "damaged"))
            continue
        status = _status(raw, str(entries.get(SIGNATURE, "")), trusted)
        signer, lora = str(manifest.get("signer", "")), str(manifest.get("lora", ""))
        out.append(Parent(str(row.get("parent", "")), lora, signer, status))
    return out


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _texts(value: Any) -> Any:
    """Floats as text, inside lists and tables as well."""
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, Mapping):
        return {str(name): _texts(item) for name, item in value.items()}
    return (
        [_texts(item) for item in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )
