"""The icon store: every subject and every SVG in one compressed file that is easy to move."""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict, dataclass
from pathlib import Path

from loracomp.errors import TrainingError
from loracomp.training.glyph.packages import fetch
from loracomp.training.glyph.subjects import Icon, Subject, read_icons, read_subjects

NAME = "icons.json.xz"


@dataclass(frozen=True)
class Store:
    """Subjects by slug, and icons sorted by style and subject."""

    subjects: dict[str, Subject]
    icons: list[Icon]


def build(folder: Path) -> Path:
    """Fetch the packages into ``folder/cache`` and write ``folder/icons.json.xz``; its path."""
    cache = folder / "cache"
    fetch(cache)
    subjects = read_subjects(cache)
    return save(folder, Store(subjects, read_icons(cache, subjects)))


def save(folder: Path, store: Store) -> Path:
    """Write the store; the same store gives the same bytes."""
    rows = {
        "subjects": [asdict(s) for _, s in sorted(store.subjects.items())],
        "icons": [asdict(i) for i in sorted(store.icons, key=lambda i: (i.style, i.subject))],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    path.write_bytes(lzma.compress(json.dumps(rows).encode(), preset=6))
    return path


def load(folder: Path) -> Store:
    """Read the store. Raises TrainingError when ``build`` has not been run."""
    path = folder / NAME
    if not path.exists():
        raise TrainingError(f"{path} is missing; run `python -m loracomp.training.glyph data` first")
    rows = json.loads(lzma.decompress(path.read_bytes()))
    subjects = {r["slug"]: Subject(**(r | {"keywords": tuple(r["keywords"])})) for r in rows["subjects"]}
    return Store(subjects, [Icon(**r) for r in rows["icons"]])
