"""What was measured of an adapter, kept beside its file and found again by its content.

A sidecar is called ``NAME.DIGEST.measured.json``, DIGEST being the first 16 hex digits of
:attr:`Adapter.digest`. Renaming an adapter changes nothing, another adapter under an old name finds nothing.
A copy goes to the user's cache folder, which is all there is where the adapter's folder cannot be written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.errors import FormatError, UsageError
from loracomp.fusion.effect import EffectCurve
from loracomp.fusion.spectra import FrequencyProfile

VERSION = 1
_DIGITS = 16


@dataclass(frozen=True)
class Measured:
    """Measurements of one adapter on one base.

    Attributes:
        digest: Of the adapter.
        base: Name of the base.
        frequency: What it does to the spectrum; None where that was not measured.
        effect: How its effect grows with its weight; None where that was not measured.
        setting: Prompts, seeds, steps and guidance of the measurement.
    """

    digest: str
    base: str
    frequency: FrequencyProfile | None = None
    effect: EffectCurve | None = None
    setting: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of a sidecar."""
        parts = {
            "version": VERSION,
            "digest": self.digest,
            "base": self.base,
            "frequency": self.frequency.to_parts() if self.frequency else None,
            "effect": self.effect.to_parts() if self.effect else None,
            "setting": self.setting,
        }
        return json.dumps(parts) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """What :meth:`to_json` wrote; raises :class:`FormatError` for anything else."""
        try:
            parts = json.loads(text)
            if parts["version"] != VERSION:
                raise FormatError(f"measurements of version {parts['version']}; measure again")
            frequency = FrequencyProfile.from_parts(parts["frequency"]) if parts["frequency"] else None
            effect = EffectCurve.from_parts(parts["effect"]) if parts["effect"] else None
            return cls(str(parts["digest"]), str(parts["base"]), frequency, effect, dict(parts["setting"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not measurements of an adapter ({error})") from error


def cache_folder() -> Path:
    """Where measurements of all adapters go.

    ``$LORACOMP_CACHE``, else ``loracomp`` in the user's cache folder.
    """
    if own := os.environ.get("LORACOMP_CACHE"):
        return Path(own) / "measured"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loracomp" / "measured"


def recall(adapter: Adapter, base: str, folders: Iterable[Path] = ()) -> Measured | None:
    """What is known of an adapter on a base; None where nothing is.

    Bases with an architecture of their own go by various names (their folder, their pipeline's class), so
    those count as one: an adapter fits one architecture only.

    Args:
        adapter: The adapter.
        base: Name of the base.
        folders: Where to look before the cache folder, usually that of the adapter's file.

    Raises:
        FormatError: A sidecar that is damaged.
    """
    for folder in (*folders, cache_folder()):
        for file in sorted(folder.glob(f"*.{adapter.digest[:_DIGITS]}.measured.json")):
            try:
                found = Measured.from_json(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeError, FormatError) as error:
                raise FormatError(f"{file}: {error}; delete it and measure again") from error
            same = found.base == base or not {found.base, base} & BASES.keys()
            if same and found.digest == adapter.digest:
                return found
    return None


def remember(measured: Measured, name: str, folder: Path | None = None) -> Path:
    """Writes sidecars, each whole or not at all; returns the first one.

    Args:
        measured: What to write.
        name: First part of the file's name, for people.
        folder: That of the adapter's file. The cache folder gets a copy, so that the adapter is known
            wherever it comes from.

    Raises:
        UsageError: Neither folder can be written.
    """
    written, last = [], ""
    for place in ([folder] if folder else []) + [cache_folder()]:
        try:
            written.append(_write(measured, name, place))
        except OSError as error:
            last = str(error)
    if not written:
        raise UsageError(f"{cache_folder()}: cannot be written ({last}); set LORACOMP_CACHE to a folder")
    return written[0]


def _write(measured: Measured, name: str, folder: Path) -> Path:
    """Writes one sidecar in place of those under other names."""
    file = folder / f"{name}.{measured.digest[:_DIGITS]}.measured.json"
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    folder.mkdir(parents=True, exist_ok=True)
    part.write_text(measured.to_json(), encoding="utf-8")
    part.replace(file)
    for other in folder.glob(f"*.{measured.digest[:_DIGITS]}.measured.json"):
        if other != file:
            other.unlink(missing_ok=True)
    return file
