"""Subjects (what an icon shows): their names, keywords, and which icon of which set shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracomp.training.glyph.packages import ART_SETS, EXTRA_SETS, read_json

# Icons that older sets name differently. Names that no table knows are left out of the data.
_OLD_NAMES = {
    "bear-face": "bear",
    "cat-face-with-tears-of-joy": "cat-with-tears-of-joy",
    "cat-face-with-wry-smile": "cat-with-wry-smile",
    "crying-cat-face": "crying-cat",
    "direct-hit": "bullseye",
    "frog-face": "frog",
    "grinning-cat-face": "grinning-cat",
    "grinning-cat-face-with-smiling-eyes": "grinning-cat-with-smiling-eyes",
    "hamster-face": "hamster",
    "kissing-cat-face": "kissing-cat",
    "laptop-computer": "laptop",
    "lion-face": "lion",
    "panda-face": "panda",
    "pouting-cat-face": "pouting-cat",
    "robot-face": "robot",
    "smiling-cat-face-with-heart-eyes": "smiling-cat-with-heart-eyes",
    "unicorn-face": "unicorn",
    "weary-cat-face": "weary-cat",
}


@dataclass(frozen=True)
class Subject:
    """One thing an icon can show."""

    slug: str
    name: str
    group: str
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class Icon:
    """One picture of a subject in a style, as SVG text."""

    subject: str
    style: str
    svg: str


def read_subjects(cache: Path) -> dict[str, Subject]:
    """Every emoji but the flags, by slug (lower-case words joined by hyphens)."""
    words = read_json(cache, "emojilib", "dist/emoji-en-US.json")
    subjects = {}
    for emoji, row in read_json(cache, "unicode-emoji-json", "data-by-emoji.json").items():
        if row["group"] == "Flags":
            continue
        slug = row["slug"].replace("_", "-")
        keywords = _keywords(words.get(emoji, ()), row["name"])
        subjects[slug] = Subject(slug, _plain(row["name"]), row["group"], keywords)
    return subjects


def read_icons(cache: Path, subjects: dict[str, Subject]) -> list[Icon]:
    """Every icon of every art set whose subject is known: one icon per (subject, style)."""
    known = _known_names(cache, subjects)
    squeezed = {slug.replace("-", ""): slug for slug in subjects}
    icons: list[Icon] = []
    for art in (*ART_SETS, *EXTRA_SETS):
        package = f"@iconify-json/{art.package}"
        table = read_json(cache, package, "icons.json")
        found: dict[str, Icon] = {}
        for name, row in _rows(table):
            subject = known.get(name)
            if subject is None and art in EXTRA_SETS:
                plain = name.rstrip("0123456789").rstrip("-")
                subject = known.get(plain) or squeezed.get(plain)
            if subject is not None and subject not in found:
                found[subject] = Icon(subject, art.style, _svg(row, table))
        icons.extend(found.values())
    return icons


def _known_names(cache: Path, subjects: dict[str, Subject]) -> dict[str, str]:
    """Icon name → slug: the slugs themselves, the old names, and the sets' own code-point tables."""
    by_emoji = {
        _bare(emoji): row["slug"].replace("_", "-")
        for emoji, row in read_json(cache, "unicode-emoji-json", "data-by-emoji.json").items()
    }
    known = {slug: slug for slug in subjects} | _OLD_NAMES
    for art in ART_SETS:
        chars = read_json(cache, f"@iconify-json/{art.package}", "chars.json")
        for points, name in chars.items():
            slug = by_emoji.get(_bare("".join(chr(int(p, 16)) for p in points.split("-"))))
            if slug in subjects:
                known.setdefault(name, slug)
    return known


def _rows(table: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Icons, then aliases that change nothing but the name."""
    icons = table["icons"]
    plain = [(n, a["parent"]) for n, a in table.get("aliases", {}).items() if list(a) == ["parent"]]
    return [*icons.items(), *((n, icons[p]) for n, p in plain if p in icons)]


def _svg(row: dict[str, Any], table: dict[str, Any]) -> str:
    width = row.get("width", table.get("width", 16))
    height = row.get("height", table.get("height", 16))
    box = f"{row.get('left', 0)} {row.get('top', 0)} {width} {height}"
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} viewBox="{box}">{row["body"]}</svg>'


def _bare(emoji: str) -> str:
    return emoji.replace("\ufe0f", "")


def _plain(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in " -'&" else " " for c in name.lower())
    return " ".join(kept.split())


def _keywords(words: list[str] | tuple[str, ...], name: str) -> tuple[str, ...]:
    """Keywords in plain words, without the name itself and without emoticons such as ``:D``."""
    spaced = [word.replace("_", " ").lower() for word in words]
    good = [w for w in spaced if w.replace(" ", "").replace("-", "").isalpha() and len(w) > 2]
    return tuple(dict.fromkeys(w for w in good if w != _plain(name)))
