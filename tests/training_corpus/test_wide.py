"""Words and pictures beyond the corpus: nothing of validation and test, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from known_concepts import KNOWN

from loracomp.retrieval.said import Said
from loracomp.retrieval.words import content
from loracomp.training.corpus.concepts import Concept
from loracomp.training.corpus.pools import pools
from loracomp.training.encoder import wide
from loracomp.training.encoder.wide import Words
from loracomp.training.glyph.splits import unseen_subjects
from loracomp.training.glyph.store import Store


def test_no_concept_of_validation_or_test_is_among_them(store: Store) -> None:
    first = wide.random_concepts(store, KNOWN, 400, seed=1)
    barred = [concept for concept in first if not concept.subjects][:3]
    known = [*KNOWN, *(Concept(**{**vars(c), "split": "test"}) for c in barred)]
    again = wide.random_concepts(store, known, 400, seed=1)
    keys = {wide.key(concept) for concept in again}
    assert len(again) == 400
    assert not keys & {wide.key(concept) for concept in known if concept.split != "train"}
    assert {wide.key(concept) for concept in barred} <= {wide.key(concept) for concept in first}


@pytest.mark.parametrize("words", ["all", "train"])
def test_they_are_made_of_what_the_choice_allows_and_never_of_the_benchmark(
    store: Store, words: Words
) -> None:
    made = wide.random_concepts(store, KNOWN, 500, words)
    split = pools(store, 0)
    allowed = {s for name, pool in split.items() for s in pool.subjects if words == "all" or name == "train"}
    families = {look.family for pool in split.values() for look in pool.filters}
    trained = {look.family for look in split["train"].filters}
    used = {slug for concept in made for slug in concept.subjects}
    assert used <= allowed
    assert not used & set(unseen_subjects())
    filters = {look.family for concept in made for look in concept.looks if look.stage == "filter"}
    assert filters <= (trained if words == "train" else families)
    assert (filters <= trained) == (words == "train")
    assert made == wide.random_concepts(store, KNOWN, 500, words)


def test_pictures_words_and_imitations_belong_together(store: Store, tmp_path: Path) -> None:
    concepts = wide.random_concepts(store, KNOWN, 40)
    plain = torch.full((8, 3, 128, 128), 255, dtype=torch.uint8)
    plain[:, :, 40:80, 40:80] = torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None, None]

    def states(texts: list[str]) -> Said:
        told = torch.tensor([[[float(len(text)), 1.0]] for text in texts])
        return Said(told, torch.ones(len(texts), 1, dtype=torch.bool))

    found = wide.gathered(concepts, store, plain, states, torch.tensor([0.0, 1.0]), jobs=1)
    assert found.states.states.shape == (40, 4, 1, 2)
    assert found.states.states[3, 1, 0, 0] == len(concepts[3].descriptions[1])
    assert found.pictures.shape == (40, 4, 3, 64, 64)
    small = wide._small(plain)
    for place, concept in enumerate(concepts):
        same = bool((found.imitated[place] == small).all())
        assert same == (not concept.looks)
        assert bool(found.things[place]) == bool(concept.subjects)
        assert bool(found.usable[place]) == (not concept.artwork)
    wide.save(found, tmp_path / "wide.safetensors")
    again = wide.load(tmp_path / "wide.safetensors")
    assert torch.equal(again.imitated, found.imitated)
    assert torch.equal(again.states.states, found.states.states)
    assert again.words == found.words >= content(concepts[0].descriptions[0])
