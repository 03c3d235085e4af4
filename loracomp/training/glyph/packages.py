"""The open emoji artwork that glyph learns from: pinned packages, fetched with the npm client."""

from __future__ import annotations

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracomp.errors import LoracompError


@dataclass(frozen=True)
class ArtSet:
    """One collection of icons: where it comes from and what its style is called."""

    style: str
    package: str
    version: str
    license: str
    phrase: str
    seen: bool
    """True when the denoiser trains on this style."""


ART_SETS: tuple[ArtSet, ...] = (
    ArtSet("noto", "noto", "1.2.9", "Apache-2.0", "noto style", True),
    ArtSet("twemoji", "twemoji", "1.2.5", "CC-BY-4.0", "twemoji style", True),
    ArtSet("flat", "fluent-emoji-flat", "1.2.6", "MIT", "fluent flat style", True),
    ArtSet("emojione", "emojione", "1.2.3", "CC-BY-4.0", "emojione style", True),
    ArtSet("fluent", "fluent-emoji", "1.2.7", "MIT", "fluent style", False),
    ArtSet("mono", "fluent-emoji-high-contrast", "1.2.6", "MIT", "mono style", False),
    ArtSet("blobs", "noto-v1", "1.2.5", "Apache-2.0", "blobs style", False),
)
EXTRA_SETS: tuple[ArtSet, ...] = (
    ArtSet("fxemoji", "fxemoji", "1.2.2", "Apache-2.0", "", False),
    ArtSet("streamline", "streamline-emojis", "1.2.4", "CC-BY-4.0", "", False),
    ArtSet("monotone", "emojione-monotone", "1.2.1", "CC-BY-4.0", "", False),
)
"""Further drawings, without a style's name, that only the judge trains on."""
BASE_STYLES: tuple[str, ...] = tuple(s.style for s in ART_SETS if s.seen)
UNSEEN_STYLES: tuple[str, ...] = tuple(s.style for s in ART_SETS if not s.seen)
WORD_PACKAGES: dict[str, str] = {"unicode-emoji-json": "0.9.0", "emojilib": "4.0.3"}


def fetch(cache: Path) -> None:
    """Bring every pinned package that is missing into ``cache`` with ``npm pack``.

    Raises LoracompError when the npm client fails.
    """
    cache.mkdir(parents=True, exist_ok=True)
    wanted = {f"@iconify-json/{s.package}": s.version for s in (*ART_SETS, *EXTRA_SETS)} | WORD_PACKAGES
    for name, version in wanted.items():
        if _archive(cache, name, version).exists():
            continue
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoracompError(f"`{' '.join(command)}` failed in {cache}: {done.stderr.strip()}")


def read_json(cache: Path, name: str, member: str) -> Any:
    """The parsed JSON file ``member`` of the pinned package ``name``; {} when it has no such file."""
    versions = {f"@iconify-json/{s.package}": s.version for s in (*ART_SETS, *EXTRA_SETS)} | WORD_PACKAGES
    with tarfile.open(_archive(cache, name, versions[name])) as archive:
        try:
            stream = archive.extractfile(f"package/{member}")
        except KeyError:
            return {}
        if stream is None:
            return {}
        return json.load(stream)


def _archive(cache: Path, name: str, version: str) -> Path:
    return cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
