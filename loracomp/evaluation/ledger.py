"""What a benchmark has done so far, in a folder that survives interruptions.

``settings.json`` says what the run is and which adapters it used, ``records.jsonl`` has a line per
finished unit of work, and ``pictures/`` its pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from loracomp.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Key = tuple[str, int, str]


@dataclass(frozen=True)
class Record:
    """A finished unit: one row's pictures of one cell.

    Attributes:
        cell: Id of the cell.
        steps: Denoising steps.
        row: Name of the row.
        cluster: Cells of one cluster are not independent.
        scores: One value per picture and score; None where a score has no meaning.
        seconds: Wall time of drawing; None for the artist.
        peak: Peak memory in bytes; None where unknown.
    """

    cell: str
    steps: int
    row: str
    cluster: str
    scores: Mapping[str, Sequence[float | None]]
    seconds: float | None = None
    peak: int | None = None

    @property
    def key(self) -> Key:
        """What makes it one unit."""
        return self.cell, self.steps, self.row

    @property
    def protocol(self) -> str:
        """The protocol of its cell."""
        return self.cell.split("/", 1)[0]

    def to_json(self) -> str:
        """One line of JSON with sorted keys; raises ValueError for a score that is no number."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """What :meth:`to_json` wrote; raises ValueError or TypeError for anything else."""
        return cls(**json.loads(line))


class Ledger:
    """Records and pictures of one run.

    Args:
        folder: Created if need be.
        settings: What the run is; another run's folder is refused.
        adapters: Digest of each adapter, by name; more may be added by a later run, none changed.

    Raises:
        UsageError: The folder belongs to a run with other settings, is damaged, or cannot be written.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], adapters: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.adapters = dict(adapters)
        try:
            (folder / "pictures").mkdir(parents=True, exist_ok=True)
            self._claim()
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error}); choose another --out") from error
        self.records = {record.key: record for record in self._read()}

    @classmethod
    def reopen(cls, folder: Path) -> Ledger:
        """An earlier run's ledger with its own settings; raises :class:`UsageError` if there is none."""
        path = folder / "settings.json"
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls(folder, held["settings"], held["adapters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not the settings of a run ({error}); check --out") from error

    def __contains__(self, key: Key) -> bool:
        return key in self.records

    def add(self, record: Record, pictures: Sequence[Image]) -> None:
        """Keeps a unit: its pictures first, so that a record never lacks them."""
        path = self._picture(record.key)
        part = path.with_suffix(".part")
        _strip(pictures).save(part, format="PNG")
        part.replace(path)
        with (self.folder / "records.jsonl").open("a", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")
        self.records[record.key] = record

    def picture(self, key: Key, index: int = 0) -> Image | None:
        """The picture of one seed of a unit; None if it is not there."""
        from PIL import Image as Pillow

        path = self._picture(key)
        if not path.is_file():
            return None
        with Pillow.open(path) as strip:
            side = strip.height
            return strip.crop((index * side, 0, (index + 1) * side, side)).convert("RGB")

    def _picture(self, key: Key) -> Path:
        name = sha256(json.dumps(key).encode()).hexdigest()[:20]
        return self.folder / "pictures" / f"{name}.png"

    def _claim(self) -> None:
        path = self.folder / "settings.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        now = json.loads(json.dumps({"settings": self.settings, "adapters": self.adapters}))
        for kind, held in before.items():
            given = now[kind] if kind == "settings" else held | now[kind]
            other = [
                key for key in sorted({*held, *given}) if held.get(key, given.get(key)) != given.get(key)
            ]
            if other:
                raise UsageError(
                    f"{self.folder}: holds a run with other {kind} ({', '.join(other)}); choose another --out"
                )
        now["adapters"] |= before.get("adapters", {})
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(path)

    def _read(self) -> list[Record]:
        """The records; a last line that was cut off in the middle of writing is taken away."""
        path = self.folder / "records.jsonl"
        if not path.is_file():
            return []
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        try:
            return [Record.from_json(line) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}: not a benchmark's records ({error}); choose another --out") from error


def _strip(pictures: Sequence[Image]) -> Image:
    """Pictures of one size side by side."""
    from PIL import Image as Pillow

    side = pictures[0].height
    strip = Pillow.new("RGB", (sum(picture.width for picture in pictures), side))
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * picture.width, 0))
    return strip
