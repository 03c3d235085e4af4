"""Prompts taken apart, pairs held against each other, choices explained, neighbours mixed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from known_adapters import CROSS, adapter, bank, spoken

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.formats import load, save
from loracomp.lowrank import LowRank, concatenate
from loracomp.retrieval.auto import choose
from loracomp.retrieval.building import build
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.hearing import confidence
from loracomp.retrieval.pairs import pair, pairs
from loracomp.retrieval.search import Searcher
from loracomp.retrieval.sites import site_table
from loracomp.retrieval.spans import Span, spans
from loracomp.retrieval.synthesis import KEY, cosine, mixing_weights, synthesize
from loracomp.retrieval.words import WordIndex, reciprocal_ranks

TABLE = site_table("glyph")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("an owl", [("owl", False)]),
        ("a watermelon and a violin in pixel style", [("watermelon", 0), ("violin", 0), ("pixel style", 1)]),
        ("a cat in a box in neon style", [("cat in a box", False), ("neon style", True)]),
        ("a hat with a star, watercolor look", [("hat", False), ("star", False), ("watercolor look", True)]),
        ("an image of the red bicycle drawn in halftone style", [("red bicycle", 0), ("halftone style", 1)]),
        ("a", [("a", False)]),
        ("", []),
    ],
)
def test_prompts_fall_into_what_and_how(prompt: str, expected: list[tuple[str, bool]]) -> None:
    assert spans(prompt) == [Span(text, bool(style)) for text, style in expected]


def test_no_prompt_has_more_than_six_parts() -> None:
    assert len(spans(", ".join(f"thing {n}" for n in range(50)))) == 6


def summed(one: Adapter, other: Adapter, weight: float) -> Adapter:
    """One adapter plus a share of another."""
    return replace(
        one,
        name="sum",
        layers={p: concatenate([v, other.layers[p].scaled(weight)]) for p, v in one.layers.items()},
    )


def test_pairs_agree_with_dense_updates() -> None:
    first, second = adapter(1), summed(adapter(2), adapter(1), 0.7)
    found = pair(first, second)
    dense = [
        torch.cat([layer.delta(torch.float64).flatten() for layer in a.layers.values()])
        for a in (first, second)
    ]
    exact = float(torch.nn.functional.cosine_similarity(dense[0], dense[1], dim=0))
    assert found.cosine == pytest.approx(exact, abs=1e-9)
    assert cosine(first, second) == pytest.approx(exact, abs=1e-9)
    assert found.conflict
    assert found.common == len(first.layers)
    assert 0 <= found.shared <= 1


def test_unrelated_adapters_are_no_suspicious_pair() -> None:
    found = pairs([adapter(n, 8) for n in range(3)])
    assert len(found) == 3
    assert not any(report.suspicious or report.warnings or report.conflict for report in found)


def test_cancelling_growing_and_equal_adapters_are_told() -> None:
    first, second = adapter(1, 8), adapter(2, 8)
    cancelling = pair(first, summed(second, first, -1.5))
    assert cancelling.suspicious
    assert "cancel" in cancelling.warnings[0]
    assert "cosine 1.00" in pair(first, replace(first, name="again")).warnings[0]
    growing = pair(_with_seam(first, 3), _with_seam(second, 3))
    assert growing.suspicious
    assert "grow a direction" in growing.warnings[0]
    assert not pair(_with_seam(first, 3), _with_seam(second, 4)).suspicious
    assert json.loads(json.dumps(growing.to_dict()))["suspicious"]


def _with_seam(original: Adapter, seed: int) -> Adapter:
    """An adapter with one strong direction that its seed decides, in every layer."""
    layers = {}
    for path, layer in original.layers.items():
        up, down = layer.matrices(torch.float32)
        source = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(n, generator=source) for n in (up.shape[0], down.shape[1]))
        top = float(torch.linalg.matrix_norm(up @ down, 2)) * 0.95
        seam_up, seam_down = left[:, None] / left.norm() * top, right[None] / right.norm()
        tail = layer.down.shape[1:]
        layers[path] = LowRank(
            torch.cat([down, seam_down]).reshape(-1, *tail),
            torch.cat([up, seam_up], 1).reshape(up.shape[0], -1, *layer.up.shape[2:]),
        )
    return replace(original, layers=layers)


def test_confidence_is_the_chance_not_to_be_the_best_of_unrelated_ones() -> None:
    source = torch.Generator().manual_seed(0)
    best = torch.randn(4000, 50, generator=source).amax(1)
    for score in (1.5, 2.5, 3.5):
        assert confidence(score, 50) == pytest.approx(float((best < score).double().mean()), abs=0.03)
    assert confidence(-9, 5) < 1e-9


def test_words_and_fused_ranks() -> None:
    index = WordIndex([("1", "a red dragon"), ("2", "dragons dragons"), ("3", "an owl"), ("4", "")])
    assert [id_ for id_, _ in index.search("Dragon!", 9)] == ["2", "1"]
    assert index.search("the style of", 9) == []
    assert [id_ for id_, _ in index.search("red dragon", 9, among={"1"})] == ["1"]
    assert index.coverage("a dragon", "1") == 1.0
    assert 0 < index.coverage("a dragon and an unheard thing", "1") < 0.6
    assert index.coverage("the style", "1") == 0.0
    fused = reciprocal_ranks([(2.0, ["a", "b"]), (1.0, ["b", "c"])])
    assert sorted(fused, key=lambda key: -fused[key]) == ["b", "a", "c"]
    assert reciprocal_ranks([(1.0, ["a"]), (3.0, ["a"])]) == {"a": pytest.approx(1.0)}


WORDS = ("quorf", "zibble", "mantro", "yexil")


@pytest.fixture
def searcher(tmp_path: Path) -> Iterator[Searcher]:
    """An index of four adapters that each respond to one made-up word; the first two are nearly equal."""
    pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
    folder = tmp_path / "loras"
    folder.mkdir()
    probes = bank()
    for number, word in enumerate(WORDS):
        source = torch.Generator().manual_seed(max(number, 1))
        heard = probes.center(spoken([f"{word}"]))[0]
        layers = {}
        for place, weight in probes.weights.items():
            up = torch.randn(len(weight), 2, generator=source)
            down = torch.stack([heard / heard.norm(), torch.randn(256, generator=source) / 64])
            layers[TABLE.sites[place].path] = LowRank(down, up)
        said = {"modelspec.trigger_phrase": f"zz{number}", "modelspec.license": "MIT"}
        save(Adapter(layers, "glyph", f"f{number}", said), folder / f"f{number}.safetensors")
    collection = Collection(tmp_path / "index", create=True)
    (collection.folder / "banks").mkdir()
    bank().save(collection.folder / "banks" / "glyph.safetensors")
    build([folder], collection)
    yield Searcher(collection, states={"glyph": spoken})
    collection.close()


def test_a_choice_is_made_and_explained(searcher: Searcher) -> None:
    choice = choose("a mantro and a yexil, a plain tree", searcher, load)
    assert {chosen.name for chosen in choice.adapters} == {"f2", "f3"}
    assert choice.prompt.startswith("a mantro and a yexil, a plain tree, zz")
    assert choice.method == "merge"
    assert set(choice.left) == {"plain tree"}
    assert all(chosen.confidence >= 0.9 and "hears" in chosen.why for chosen in choice.adapters)
    told = "\n".join(choice.lines())
    assert "'mantro': f2" in told
    assert "'plain tree': the base alone" in told
    assert json.loads(json.dumps(choice.to_dict()))["method"] == "merge"


def test_nothing_is_chosen_where_nothing_helps(searcher: Searcher) -> None:
    choice = choose("a plain tree", searcher, load)
    assert (choice.adapters, choice.method, choice.prompt) == ((), "", "a plain tree")
    assert any("base draws alone" in line for line in choice.lines())


def test_quarantined_adapters_and_too_many_are_left_out(searcher: Searcher) -> None:
    index = searcher._collection.index
    row = next(row for row in index.get([r["id"] for r in index.scan()]) if row["name"] == "f2")
    index.upsert([{**row, "quarantine": 1}])
    assert all(chosen.name != "f2" for chosen in choose("a mantro", searcher, load).adapters)
    two = choose("a zibble and a yexil", searcher, load, most=1)
    assert len(two.adapters) == 1
    assert any("taken already" in why for why in two.left.values())


def test_a_pair_that_conflicts_shares_or_is_refused(searcher: Searcher) -> None:
    def tampered(path: str) -> Adapter:
        opened, other = load(path), load(Path(path).with_name("f2.safetensors"))
        return summed(opened, other, 0.6) if opened.name == "f3" else opened

    assert choose("a mantro and a yexil", searcher, tampered).method == "lion"

    def against(path: str) -> Adapter:
        opened, other = load(path), load(Path(path).with_name("f2.safetensors"))
        return summed(opened, other, -3.0) if opened.name == "f3" else opened

    choice = choose("a mantro and a yexil", searcher, against)
    assert len(choice.adapters) == 1
    assert "cancel" in next(iter(choice.rejected.values()))


def test_a_mixture_is_the_weighted_sum_of_updates_at_full_rank() -> None:
    parents = [adapter(1), summed(adapter(2), adapter(1), 0.8), adapter(3, suffixes=CROSS)]
    weights = mixing_weights([0.9, 0.8, 0.7], 0.2)
    assert sum(weights) == pytest.approx(1.0)
    made, report = synthesize(parents, [0.9, 0.8, 0.7], name="mix", rank=64, temperature=0.2, chance=-1)
    for path, layer in made.layers.items():
        parts = [
            w * p.layers[path].delta(torch.float64)
            for w, p in zip(weights, parents, strict=True)
            if path in p.layers
        ]
        exact = torch.stack(parts).sum(0)
        assert torch.allclose(layer.delta(torch.float64), exact, atol=1e-5 * float(exact.norm()))
    assert report.kept == pytest.approx(1.0, abs=1e-6)
    said = json.loads(made.metadata[KEY])
    assert said["parents"] == [p.name for p in parents]
    assert said["digests"] == [p.digest for p in parents]
    assert report.cosines[0] == pytest.approx(cosine(made, parents[0]))
    smaller, less = synthesize(parents, [0.9, 0.8, 0.7], name="mix", rank=2, temperature=0.2, chance=-1)
    assert max(smaller.ranks) == 2
    assert 0 < less.kept < report.kept


def test_mixtures_without_sense_or_licence_are_refused() -> None:
    parents = [adapter(1), summed(adapter(2), adapter(1), 0.8)]
    with pytest.raises(UsageError, match="no more in common"):
        synthesize([adapter(1), adapter(2)], [1, 1], name="x", chance=0.05)
    with pytest.raises(UsageError, match="needs 2 to 8"):
        synthesize(parents[:1], [1], name="x")
    with pytest.raises(UsageError, match="may not go together"):
        synthesize(parents, [1, 1], name="x", licences=["MIT", "CC-BY-NC-4.0"])
    made, report = synthesize(parents, [1, 0], name="x", licences=["MIT, CC0-1.0", "CC-BY-4.0"])
    assert made.metadata["modelspec.license"] == "CC-BY-4.0, CC0-1.0, MIT"
    assert "use that instead" in report.advice()
    with pytest.raises(UsageError, match="several bases"):
        synthesize([parents[0], replace(parents[1], base="sd15")], [1, 1], name="x")
