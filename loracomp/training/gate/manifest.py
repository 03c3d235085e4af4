"""What a gate was trained on, and that none of it is what the benchmark asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loracomp.errors import TrainingError
from loracomp.evaluation.artwork import SHIPPED
from loracomp.training.gate.material import Part
from loracomp.training.gate.scenes import contents
from loracomp.training.gate.settings import Settings


def record_of(part: Part, settings: Settings) -> dict[str, Any]:
    """Contents of the pictures, adapters and settings, for the gate's header.

    Raises:
        TrainingError: Something of it is in GlyphBench.
    """
    made = {name: list(values) for name, values in contents(part.concepts).items()}
    check(made)
    files = sorted(file.stem for rows in part.files.values() for file in rows)
    told = asdict(settings)
    del told["form"]
    return {**made, "concepts": [c.id for c in part.concepts], "adapters": files, "settings": told}


def check(record: Mapping[str, Any]) -> None:
    """Refuses a gate that was trained on GlyphBench's subjects, styles or filters.

    Raises:
        TrainingError: It was; the message names the first.
    """
    names: dict[str, Any] = json.loads((SHIPPED / "names.json").read_text("utf-8"))
    _apart("subject", record["subjects"], names["subjects"])
    _apart("style", record["artwork"], names["looks"])
    _apart("filter", record["looks"], names["looks"])


def _apart(kind: str, trained: Iterable[str], asked: Iterable[str]) -> None:
    if both := sorted(set(trained) & set(asked)):
        raise TrainingError(
            f"a gate trained on the {kind} {both[0]}, which GlyphBench asks for; train on a corpus without it"
        )


def read_record(file: Path) -> Mapping[str, Any]:
    """The record in a gate's header; raises what :func:`loracomp.fusion.gated.open_gate` raises."""
    from loracomp.fusion.gated import open_gate

    return open_gate(str(file)).record
