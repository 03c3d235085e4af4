"""The real corpus' concepts as they are committed."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

from loracomp.training.corpus.concepts import Concept

ROWS = json.loads(
    lzma.decompress((Path(__file__).parent / "training_corpus" / "concepts.json.xz").read_bytes())
)
KNOWN = [Concept.from_row(row) for row in ROWS]
