"""The corpus' plan: what it must not hold, what differs, and how it is split."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from known_concepts import KNOWN, ROWS

from loracomp.bases import get_base
from loracomp.training.corpus.concepts import KINDS, SPLITS, Concept
from loracomp.training.corpus.looks import Look
from loracomp.training.corpus.phrases import ARRANGEMENTS, ARTWORK, PHRASES
from loracomp.training.corpus.plan import PICTURES, VARIANTS, adapters, concepts, sample
from loracomp.training.corpus.pools import FILTER_SETTINGS, usable_subjects
from loracomp.training.corpus.recolor import RECOLORINGS
from loracomp.training.corpus.store import read_plan, write_plan
from loracomp.training.corpus.words import nonsense
from loracomp.training.glyph import store as icons
from loracomp.training.glyph.filters import FILTERS
from loracomp.training.glyph.lookalikes import group_of
from loracomp.training.glyph.packages import EXTRA_SETS, UNSEEN_STYLES
from loracomp.training.glyph.splits import unseen_subjects
from loracomp.training.glyph.store import Store
from loracomp.training.many.manifest import read_manifest


@pytest.fixture(scope="module", params=["committed", "made"])
def planned(request: pytest.FixtureRequest, store: Store) -> list[Concept]:
    """The real corpus' concepts as committed, and those made from the synthetic store."""
    if request.param == "made":
        return concepts(store)
    return KNOWN


def test_nothing_of_glyphbench_is_in_it(planned: list[Concept], store: Store) -> None:
    """No unseen subject nor one that looks like it, no unseen style, none of the six filters."""
    groups = group_of([*store.subjects, *(slug for c in planned for slug in c.subjects)])
    hidden = {groups[slug] for slug in unseen_subjects()}
    assert len(hidden) > 50
    for concept in planned:
        assert not {groups[slug] for slug in concept.subjects} & hidden
        assert concept.artwork not in UNSEEN_STYLES
        assert not {look.family for look in concept.looks} & set(FILTERS)
    assert not {groups[slug] for slug in usable_subjects(store)} & hidden
    assert {concept.artwork for concept in planned} - {""} <= {art.style for art in EXTRA_SETS}


def test_the_committed_concepts_are_those_of_the_artwork() -> None:
    data = Path(__file__).parents[2] / ".data"
    if not (data / icons.NAME).exists():
        pytest.skip("the artwork is not here; `python -m loracomp.training.glyph data` fetches it")
    made = [concept.to_row() for concept in concepts(icons.load(data))]
    assert made == ROWS


def test_concepts_are_many_distinct_and_of_all_kinds(planned: list[Concept]) -> None:
    assert len(planned) >= 250
    content = {(c.subjects, c.arrangement, c.artwork, c.looks) for c in planned}
    assert len(content) == len({c.id for c in planned}) == len({c.trigger for c in planned}) == len(planned)
    kinds = Counter(c.kind for c in planned)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 40
    assert all(c.subjects or c.artwork or c.looks for c in planned)
    assert all(c.subjects for c in planned if c.kind == "subject")
    for concept in planned:
        if concept.kind == "mixture":
            assert bool(concept.arrangement) + bool(concept.artwork) + len(concept.looks) == 2
        assert Concept.from_row(json.loads(json.dumps(concept.to_row()))) == concept


def test_no_part_of_a_concept_is_in_two_splits(planned: list[Concept]) -> None:
    """Subjects, filters, recolorings and artwork of test concepts occur in no training concept."""
    parts: dict[str, set[object]] = {split: set() for split in SPLITS}
    for concept in planned:
        own: set[object] = {*concept.subjects, concept.artwork} - {""}
        for look in concept.looks:
            own.add(look if look.stage == "recolor" else look.family)
        parts[concept.split] |= own
    for one, other in combinations(SPLITS, 2):
        assert not parts[one] & parts[other]
    shares = Counter(c.split for c in planned)
    assert 0.65 < shares["train"] / len(planned) < 0.75
    assert min(shares.values()) >= 40


def test_trigger_words_and_names_give_nothing_away(planned: list[Concept]) -> None:
    meant = {word for c in planned for name in c.names for word in name.split() if len(word) > 3}
    meant |= {word for look in PHRASES.values() for text in look for word in re.findall("[a-z]{5,}", text)}
    for concept in planned:
        assert re.fullmatch("[a-z]{5,9}", concept.trigger)
        assert concept.trigger not in meant
        assert all(concept.trigger not in text for text in concept.descriptions)
    words = nonsense(300, 1, ["saxophone"])
    assert words == nonsense(300, 1, ["saxophone"]) != nonsense(300, 2, ["saxophone"])
    for one, other in combinations(words, 2):
        assert len(one) != len(other) or sum(a != b for a, b in zip(one, other, strict=True)) > 1


def test_every_concept_is_described_in_four_ways(planned: list[Concept]) -> None:
    for concept in planned:
        ways = concept.descriptions
        assert len(set(ways)) >= 3, ways
        assert all(
            "{" not in text and "a a" not in text.split() and not text.startswith(" ") for text in ways
        )
        assert not any(re.search(r"\ba (apple|alarm|owl|airplane)", text) for text in ways)
        assert all(name in text for name in concept.names for text in ways)
    for families in (PHRASES, ARRANGEMENTS, ARTWORK):
        assert all(len(ways) == 4 for ways in families.values())
    assert set(PHRASES) == set(FILTER_SETTINGS) | set(RECOLORINGS)
    phrases = Look.of("filter", "relief", color="rust").phrases
    assert phrases[0] == "embossed in rust stone"


def test_adapters_vary_and_their_seeds_are_split(planned: list[Concept]) -> None:
    found = adapters(planned)
    assert len(found) == len(planned) * len(VARIANTS) >= 1000
    assert found == adapters(planned)
    assert found != adapters(planned, seed=1)
    assert len({adapter.seed for adapter in found}) == len({adapter.name for adapter in found}) == len(found)
    for field, least in (("rank", 4), ("steps", 3), ("targets", 3), ("lr", 3)):
        assert len({getattr(adapter, field) for adapter in found}) >= least
    assert {len(adapter.pictures) for adapter in found} == {8, 12, 16, PICTURES}
    assert 180 <= sum(adapter.steps for adapter in found) / len(found) <= 220
    for adapter in found:
        assert (adapter.seed // 1_000_000 - 1) == SPLITS.index(adapter.seed_split)
        assert adapter.concept.id not in adapter.name
    cells = Counter((adapter.concept.split, adapter.seed_split) for adapter in found)
    assert len(cells) == 9


def test_the_size_is_what_the_issue_says(planned: list[Concept]) -> None:
    """About 1.3 GB in fp16: the mean rank is close to 8 on most of glyph's layers."""
    from loracomp.bases import modules
    from loracomp.training.corpus.plan import TARGETS

    table = {path: shape for path, shape in modules("glyph").items() if path.startswith("unet.")}
    per_rank = {}
    for key, chosen in TARGETS.items():
        ends = tuple(f".{target}" for target in chosen or get_base("glyph").targets)
        sizes = [shape for path, shape in table.items() if path.endswith(ends)]
        per_rank[key] = sum(
            shape[0] + shape[1] * (shape[2] * shape[3] if shape[2:] else 1) for shape in sizes
        )
    total = sum(2 * adapter.rank * per_rank[adapter.targets] for adapter in adapters(planned))
    assert 0.8e9 < total < 1.6e9


def test_a_sample_shows_all_kinds_and_splits_and_is_small(planned: list[Concept], tmp_path: Path) -> None:
    few = sample(planned, 16)
    assert {concept.kind for concept in few} == set(KINDS)
    assert {concept.split for concept in few} == set(SPLITS)
    found = adapters(few, small=True)
    assert len(found) == 64
    assert max(adapter.rank for adapter in found) <= 4
    corpus = write_plan(tmp_path / "corpus", found)
    first = {file.name: file.read_bytes() for file in (tmp_path / "corpus").iterdir()}
    write_plan(tmp_path / "corpus", adapters(sample(planned, 16), small=True))
    assert {file.name: file.read_bytes() for file in (tmp_path / "corpus").iterdir()} == first
    assert read_plan(tmp_path / "corpus") == corpus
    rows = read_manifest(tmp_path / "corpus" / "manifest.jsonl")
    assert [row.config.seed for row in rows] == [adapter.seed for adapter in found]
    assert all(row.config.sample_count == 0 for row in rows)
