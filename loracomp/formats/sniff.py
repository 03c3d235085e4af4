"""What a file is when it is not safetensors, told from its first bytes."""

from __future__ import annotations

_PICKLE = "is a pickle checkpoint, and a pickle can run code when it is opened; convert it to safetensors"
_ARCHIVE = "is an archive; unpack it and give the .safetensors file inside"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "is a GGUF model; a LoRA in safetensors is needed"),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer and not the file; run 'git lfs pull' or download it again",
    ),
    (b"\x1f\x8b", _ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", _ARCHIVE),
    (b"Rar!", _ARCHIVE),
    (b"BZh", _ARCHIVE),
    (b"\xfd7zXZ", _ARCHIVE),
    (b"\x89PNG", "is a picture; the .safetensors file is needed"),
    (b"\xff\xd8\xff", "is a picture; the .safetensors file is needed"),
    (b"\x89HDF", "is an HDF5 file; a LoRA in safetensors is needed"),
    (b"\x93NUMPY", "is a NumPy file; a LoRA in safetensors is needed"),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")


def explain(start: bytes) -> str | None:
    """What the first bytes of a file (up to 512) show it to be and the remedy; None if they do not tell.

    The length of a safetensors header fills the first eight bytes and a brace follows, so a file with
    that brace is never explained away by a length that happens to spell another format's mark.
    """
    if start[8:9] == b"{" and start[5:8] == b"\0\0\0":
        return None
    if start.startswith(b"PK\x03\x04"):
        member = start[30 : 30 + int.from_bytes(start[26:28], "little")]
        return _PICKLE if member.endswith((b".pkl", b"/version", b"byteorder")) else _ARCHIVE
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] != b"{":
        return _PICKLE
    if start[257:262] == b"ustar":
        return _ARCHIVE
    if start.lstrip()[:9].lower().startswith(_PAGES):
        return "is a web page and not a model; the download needs a login or another link"
    if start[:1] in (b"{", b"[") and start[8:9] != b"{":
        return "is a JSON text and not a model; give the .safetensors file"
    return next((reason for magic, reason in _MAGIC if start.startswith(magic)), None)
