"""What a gallery needs to know of a LoRA file, read from its header alone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loracomp.app.refusals import public
from loracomp.errors import LoracompError

if TYPE_CHECKING:
    from loracomp.formats.matching import Match
    from loracomp.formats.native import Table
    from loracomp.formats.source import Source

_LONGEST = 2000
_NAME = 120


@dataclass(frozen=True)
class Facts:
    """A file's header, as far as it is shown.

    Attributes:
        name: What it calls itself, else the file's name.
        base: Base that it fits best; empty where it cannot be read.
        kind: ``style``, ``subject``, ``accelerator`` or empty.
        licence: As claimed.
        triggers: Words that call it.
        tags: As claimed.
        rank: Largest rank; 0 where it cannot be read.
        accelerator: Whether it draws in few steps.
        hash: Tensor hash as claimed (AutoV3), 12 hex digits.
        words: Lower-case text to search in.
        error: Why it cannot be read; empty where it can.
    """

    name: str
    base: str = ""
    kind: str = ""
    licence: str = ""
    triggers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    rank: int = 0
    accelerator: bool = False
    hash: str = ""
    words: str = ""
    error: str = ""


def read_facts(path: Path, modules: Table | None = None) -> Facts:
    """The facts of a file; one that the gate refuses has a name and an error.

    Args:
        path: The file.
        modules: Weight shapes by module path of a base with an architecture of its own. A file that fits it
            whole is taken for one of its adapters.
    """
    from loracomp.adapter import Acceleration
    from loracomp.formats.gate import printable
    from loracomp.formats.source import Source

    try:
        with Source(path) as source:
            matched = _matched(source, modules)
            said = source.metadata
            name = printable(said.get("modelspec.title") or said.get("ss_output_name") or path.stem, _NAME)
            tags = _list(said.get("modelspec.tags", ""))
            triggers = _list(said.get("modelspec.trigger_phrase", ""))
            accelerator = Acceleration.from_json(said.get(Acceleration.KEY, "")) is not None
            licence = printable(said.get("modelspec.license", "").strip(), _NAME)
            kinds = [tag for tag in tags if tag in ("style", "subject")]
            words = [name, path.stem, *triggers, *tags, licence, matched.place.base]
            return Facts(
                name=name,
                base=matched.place.base,
                kind="accelerator" if accelerator else (kinds or [""])[0],
                licence=licence,
                triggers=triggers,
                tags=tags,
                rank=max((found.rank for found in matched.found), default=0),
                accelerator=accelerator,
                hash=said.get("sshs_model_hash", "")[:12].lower(),
                words=" ".join(words).lower(),
            )
    except LoracompError as error:
        stem = printable(path.stem, _NAME)
        return Facts(stem, words=stem.lower(), error=public(error))


def _matched(source: Source, modules: Table | None) -> Match:
    from loracomp.formats.matching import match

    if modules is not None:
        with suppress(LoracompError):
            own = match(source, modules=modules)
            if not own.unmatched:
                return own
    return match(source)


def _list(text: str) -> tuple[str, ...]:
    from loracomp.formats.gate import printable

    parts = (printable(part.strip(), _NAME) for part in text[:_LONGEST].split(","))
    return tuple(dict.fromkeys(part for part in parts if part))
