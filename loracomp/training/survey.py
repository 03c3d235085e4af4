"""What ``train check`` says about a folder of training data before any time is spent on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from loracomp.training.dataset import Dataset, read_dataset


@dataclass(frozen=True)
class Survey:
    """What a data folder holds.

    Attributes:
        folder: The folder.
        pictures: Number of pictures.
        captioned: How many of them have a caption.
        without_caption: Names of the others.
        sizes: Count of pictures by (width, height), most frequent first.
        duplicates: Groups of names whose files are equal byte for byte.
        repeated_captions: Number of pictures that share their caption with another one.
        words: Comma-separated pieces of the captions with their counts, most frequent first, at most 12.
        cells: Number of (subject, style) cells in ``manifest.json``.
        fingerprint: The data's fingerprint.
    """

    folder: Path
    pictures: int
    captioned: int
    without_caption: tuple[str, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    duplicates: tuple[tuple[str, ...], ...]
    repeated_captions: int
    words: tuple[tuple[str, int], ...]
    cells: int
    fingerprint: str

    def advice(self, resolution: int) -> list[str]:
        """What is worth mending, one line each; ``resolution`` is the base's side in pixels."""
        lines = []
        if self.without_caption:
            lines.append(f"{_count(self.without_caption)} without a caption; the trigger words will stand in")
        if self.duplicates:
            lines.append(f"the same picture more than once: {', '.join(self.duplicates[0])}")
        small = sum(n for (width, height), n in self.sizes if min(width, height) < resolution)
        if small:
            lines.append(f"{small} smaller than {resolution} px will be enlarged and look soft")
        cropped = sum(n for (width, height), n in self.sizes if width != height)
        if cropped:
            lines.append(f"{cropped} not square; the middle square is used")
        return lines


def survey(folder: Path) -> Survey:
    """Looks through a data folder; raises :class:`TrainingError` where nothing could be trained from it."""
    return describe(read_dataset(folder))


def describe(data: Dataset) -> Survey:
    """The survey of data already read."""
    bare = tuple(p.path.name for p in data.pictures if p.caption is None)
    same: defaultdict[str, list[str]] = defaultdict(list)
    for picture in data.pictures:
        same[picture.digest].append(picture.path.name)
    texts = Counter(p.caption for p in data.pictures if p.caption)
    return Survey(
        folder=data.folder,
        pictures=len(data.pictures),
        captioned=len(data.pictures) - len(bare),
        without_caption=bare,
        sizes=tuple(Counter(p.size for p in data.pictures).most_common()),
        duplicates=tuple(tuple(names) for names in same.values() if len(names) > 1),
        repeated_captions=sum(n for n in texts.values() if n > 1),
        words=tuple(tag_counts(data).most_common(12)),
        cells=len(data.cells),
        fingerprint=data.fingerprint,
    )


def tag_counts(data: Dataset) -> Counter[str]:
    """How often each comma-separated piece stands in the captions."""
    pieces = (piece.strip() for p in data.pictures for piece in (p.caption or "").split(","))
    return Counter(piece for piece in pieces if piece)


def _count(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
