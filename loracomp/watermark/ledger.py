"""Commitments with the time at which they were logged: the answer to a key that was made up later.

Anybody can look for a key that fits pictures that exist. What nobody can do is to have committed to it before
they did. So the commitment goes into a log, and the log's lines somewhere that others date (a repository, a
transparency log), before the LoRA is published.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from loracomp.errors import FormatError, UsageError
from loracomp.watermark.keys import Key


@dataclass(frozen=True)
class Line:
    """One commitment.

    Attributes:
        commitment: See :attr:`loracomp.watermark.keys.Key.commitment`.
        lora: Name of the LoRA.
        logged: UTC time.
        before: SHA-256 of the line before; lines cannot be slipped in later without changing all after.
    """

    commitment: str
    lora: str
    logged: str
    before: str


def commit(log: Path, key: Key) -> Line:
    """Appends a key's commitment; the earlier line where it is there already.

    Raises:
        FormatError: The log is broken.
        UsageError: It cannot be written.
    """
    lines = read(log) if log.exists() else []
    for line in lines:
        if line.commitment == key.commitment:
            return line
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = Line(key.commitment, key.lora, now, _digest(lines[-1]) if lines else "")
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(_text(line) + "\n")
    except OSError as error:
        raise UsageError(f"{log}: cannot be written ({error.strerror})") from None
    return line


def read(log: Path) -> list[Line]:
    """All lines; raises :class:`FormatError` where the chain is broken."""
    lines: list[Line] = []
    try:
        for number, text in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
            line = Line(**json.loads(text))
            if line.before != (_digest(lines[-1]) if lines else ""):
                raise FormatError(f"{log}: line {number} does not follow the one before; restore the log")
            lines.append(line)
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{log}: no log of commitments ({error})") from None
    return lines


def logged(log: Path, commitment: str) -> Line | None:
    """The line of a commitment, None where there is none."""
    return next((line for line in read(log) if line.commitment == commitment), None)


def _text(line: Line) -> str:
    return json.dumps(asdict(line), sort_keys=True)


def _digest(line: Line) -> str:
    return hashlib.sha256(_text(line).encode()).hexdigest()
