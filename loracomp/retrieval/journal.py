"""Which files have been seen: one line per file and attempt, appended and brought to the disk.

A line is written after the file's features are; what has a line is never lost. A last line that was cut
off is ignored, and the file is looked at again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ATTEMPTS = 2


@dataclass(frozen=True)
class Seen:
    """One look at a file.

    Attributes:
        path: The file.
        size: Its size in bytes at the time.
        changed: Time of its last change, in nanoseconds.
        id: Key of its row, empty where it could not be read.
        error: Why not, one line.
        attempts: How often it has failed like this.
    """

    path: str
    size: int
    changed: int
    id: str = ""
    error: str = ""
    attempts: int = 0

    def same_file(self, size: int, changed: int) -> bool:
        """Whether the file is as it was."""
        return (self.size, self.changed) == (size, changed)


class Journal:
    """The journal in a file; the last line of a path counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: dict[str, Seen] = {}
        whole = 0
        if path.is_file():
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            for line in data[:whole].splitlines():
                entry = _entry(line)
                if entry is not None:
                    self.seen[entry.path] = entry
            if whole < len(data):
                os.truncate(path, whole)

    def append(self, entries: Iterable[Seen]) -> None:
        """Adds lines; they are on the disk when this returns."""
        held = list(entries)
        if not held:
            return
        data = "".join(json.dumps(asdict(entry), ensure_ascii=True) + "\n" for entry in held).encode()
        with open(self.path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.seen |= {entry.path: entry for entry in held}

    def dead(self) -> list[Seen]:
        """Files that could not be read when they were last looked at, by path."""
        return sorted((entry for entry in self.seen.values() if entry.error), key=lambda entry: entry.path)


def _entry(line: bytes) -> Seen | None:
    try:
        return Seen(**json.loads(line))
    except (ValueError, TypeError):
        return None
