"""No gate is trained on what GlyphBench asks for; the shipped one was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from known_concepts import KNOWN

from loracomp.errors import TrainingError
from loracomp.fusion.gated.weights import shipped
from loracomp.training.corpus.concepts import Concept
from loracomp.training.corpus.looks import Look
from loracomp.training.gate.manifest import check, read_record, record_of
from loracomp.training.gate.material import Part
from loracomp.training.gate.settings import Settings

CLEAN = Concept("c000", "subject", "zup", "train", subjects=("apple",), names=("apple",))


def part(*rows: Concept) -> Part:
    return Part(rows, {row.id: (Path(f"{row.trigger}-0.safetensors"),) for row in rows})


@pytest.mark.parametrize(
    ("leak", "word"),
    [
        (Concept("c1", "subject", "a", "train", subjects=("violin",), names=("violin",)), "subject violin"),
        (Concept("c1", "style", "a", "train", artwork="blobs"), "style blobs"),
        (Concept("c1", "filter", "a", "train", looks=(Look.of("filter", "pixel"),)), "filter pixel"),
    ],
)
def test_what_the_benchmark_asks_for_is_refused(leak: Concept, word: str) -> None:
    with pytest.raises(TrainingError, match=word):
        record_of(part(CLEAN, leak), Settings())


def test_the_record_says_what_was_trained_on() -> None:
    record = record_of(part(CLEAN), Settings(seed=3))
    assert (record["subjects"], record["concepts"], record["adapters"]) == (["apple"], ["c000"], ["zup-0"])
    assert record["settings"]["seed"] == 3


def test_no_concept_of_the_corpus_is_in_the_benchmark() -> None:
    record = record_of(part(*KNOWN), Settings())
    assert len(record["concepts"]) == len(KNOWN)
    assert len(record["artwork"]) == 3


def test_the_shipped_gate_saw_nothing_of_glyphbench() -> None:
    if not shipped().is_file():
        pytest.skip("no gate ships with this tree")
    record = read_record(shipped())
    check(record)
    assert record["subjects"]
    assert record["adapters"]
    assert shipped().stat().st_size <= 1_000_000
