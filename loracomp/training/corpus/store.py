"""The corpus on disk: concepts, plan, the trainer's manifest, and the table of finished adapters.

In the corpus' folder: ``concepts.json`` (the truth), ``plan.json`` (adapters and their splits),
``manifest.jsonl`` (for ``loracomp train many``), ``pictures/`` and ``data/``, ``adapters/`` and, at the end,
``corpus.jsonl``, one row per adapter with file, digest, splits and the concept's number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loracomp.errors import TrainingError
from loracomp.training.corpus.concepts import Concept
from loracomp.training.corpus.plan import Planned

CONCEPTS, PLAN, MANIFEST, TABLE, ADAPTERS = (
    "concepts.json",
    "plan.json",
    "manifest.jsonl",
    "corpus.jsonl",
    "adapters",
)


@dataclass(frozen=True)
class Corpus:
    """A corpus as planned."""

    concepts: list[Concept]
    adapters: list[Planned]


def write_plan(out: Path, adapters: Sequence[Planned]) -> Corpus:
    """Writes concepts, plan and manifest; the same plan gives the same bytes."""
    shown = {adapter.concept.id: adapter.concept for adapter in adapters}
    found = [shown[key] for key in sorted(shown)]
    rows = [{**asdict(adapter), "concept": adapter.concept.id} for adapter in adapters]
    out.mkdir(parents=True, exist_ok=True)
    _write(out / CONCEPTS, "[\n" + ",\n".join(json.dumps(c.to_row()) for c in found) + "\n]\n")
    _write(out / PLAN, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    _write(out / MANIFEST, "".join(json.dumps(adapter.to_row()) + "\n" for adapter in adapters))
    return Corpus(found, list(adapters))


def read_plan(out: Path) -> Corpus:
    """Reads what :func:`write_plan` wrote; raises :class:`TrainingError` where there is nothing."""
    try:
        concepts = [Concept.from_row(row) for row in json.loads((out / CONCEPTS).read_text("utf-8"))]
        rows: list[dict[str, Any]] = json.loads((out / PLAN).read_text("utf-8"))
    except OSError as error:
        raise TrainingError(
            f"{out}: no corpus ({error.strerror}); run `python -m loracomp.training.corpus plan` first"
        ) from None
    table = {concept.id: concept for concept in concepts}
    made = [
        Planned(**{**row, "concept": table[row["concept"]], "pictures": tuple(row["pictures"])})
        for row in rows
    ]
    return Corpus(concepts, made)


def write_table(out: Path, corpus: Corpus) -> list[dict[str, Any]]:
    """Writes ``corpus.jsonl``: what was trained, with splits, the way it was made, and its digest.

    Raises:
        TrainingError: Nothing was trained yet.
    """
    from loracomp import formats

    rows = []
    for adapter in corpus.adapters:
        file = out / ADAPTERS / f"{adapter.name}.safetensors"
        if not file.exists():
            continue
        facts = {key: value for key, value in asdict(adapter).items() if key not in ("concept", "pictures")}
        rows.append(
            {
                **facts,
                "file": f"{ADAPTERS}/{file.name}",
                "concept": adapter.concept.id,
                "concept_split": adapter.concept.split,
                "pictures": len(adapter.pictures),
                "digest": formats.load(file).digest,
            }
        )
    if not rows:
        raise TrainingError(
            f"{out / ADAPTERS}: no adapters; run `python -m loracomp.training.corpus train` first"
        )
    _write(out / TABLE, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})") from None
