"""The learned encoder's training on a tiny corpus: splits, resuming, the commands, calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from known_adapters import adapter, bank, spoken, tokens
from PIL import Image

import loracomp.retrieval.bank
from loracomp.adapter import Adapter
from loracomp.errors import TrainingError
from loracomp.formats import load, save
from loracomp.lowrank import LowRank
from loracomp.retrieval.building import build
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.encoder import (
    Calibration,
    shipped_encoders,
)
from loracomp.retrieval.encoding import encode_adapter
from loracomp.retrieval.search import Searcher
from loracomp.retrieval.sites import site_table
from loracomp.retrieval.towers import EncoderConfig
from loracomp.training.encoder.__main__ import main
from loracomp.training.encoder.data import Material, halved, material, read_corpus
from loracomp.training.encoder.evaluate import calibrate
from loracomp.training.encoder.train import Run, Settings, train

TABLE = site_table("glyph")
TINY = EncoderConfig("glyph", 256, width=16, layers=1, heads=2, narrow=8)
WORDS = ("red", "blue", "cat", "owl", "ship", "tree")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eighteen adapters of six concepts: each says the word of its concept, whatever its seed."""
    pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
    monkeypatch.setattr(loracomp.retrieval.bank, "text_states", lambda base, folder, end=False: spoken)
    monkeypatch.setattr(loracomp.retrieval.bank, "token_states", lambda base, folder: tokens)
    folder, probes = tmp_path / "corpus", bank()
    (folder / "adapters").mkdir(parents=True)
    rows, concepts = [], []
    for number, word in enumerate(WORDS):
        said = probes.center(spoken([word]))[0]
        split = "train" if number < 4 else ("validation", "test")[number - 4]
        for seed in range(3):
            source = torch.Generator().manual_seed(10 * number + seed)
            layers = {}
            for place, weight in probes.weights.items():
                up = torch.stack([weight @ said, torch.randn(len(weight), generator=source)], 1)
                layers[TABLE.sites[place].path] = LowRank(torch.randn(2, 256, generator=source) / 16, up / 9)
            name = f"zq{number}{seed}"
            save(Adapter(layers, "glyph", name), folder / "adapters" / f"{name}.safetensors")
            seed_split = ("train", "train", "test")[seed]
            rows.append({"file": f"adapters/{name}.safetensors", "concept": f"c{number}",
                         "concept_split": split, "seed_split": seed_split})  # fmt: skip
        concepts.append(
            {"id": f"c{number}", "description": word, "paraphrases": [f"a {word}", f"the {word}"]}
        )
        (folder / "pictures" / f"c{number}").mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        for copy in range(2):
            Image.fromarray(pixels).resize((96, 64 + copy)).save(
                folder / "pictures" / f"c{number}" / f"{copy}.png"
            )
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "concepts.json").write_text(json.dumps(concepts))
    index = tmp_path / "index"
    Collection(index, create=True)
    (index / "banks").mkdir()
    probes.save(index / "banks" / "glyph.safetensors")
    return folder


def loaded(corpus: Path) -> Material:
    found = read_corpus(corpus)
    collection = Collection(corpus.with_name("index"))
    build([entry.file for entry in found.entries], collection, jobs=1)
    return material(found, collection, "glyph", tokens)


def test_a_corpus_falls_into_splits_by_concept_and_seed(corpus: Path) -> None:
    found = loaded(corpus)
    assert {split: len(found.members(split)) for split in ("train", "validation", "test", "other")} == {
        "train": 8, "validation": 3, "test": 3, "other": 4,
    }  # fmt: skip
    assert found.unseen("test").tolist() == [5]
    assert found.pictures.shape == (12, 3, 64, 64)
    (corpus / "concepts.json").write_text("[]")
    with pytest.raises(TrainingError, match="not a corpus"):
        read_corpus(corpus)


def test_training_learns_and_goes_on_exactly_where_it_stopped(corpus: Path, tmp_path: Path) -> None:
    found = loaded(corpus)
    settings = Settings(steps=16, minutes=1e6, batch=8, warm=3, every=8, rate=2e-3, patience=99)
    whole = train(found, TINY, settings, tmp_path / "whole", say=lambda line: None)
    train(found, TINY, replace(settings, steps=8), tmp_path / "parts", say=lambda line: None)
    stopped = Run(found, TINY, settings, "cpu")
    stopped.load(tmp_path / "parts" / "last.pt")
    assert stopped.step == 8
    first = Run(found, TINY, settings, "cpu")
    losses = [first.advance() for _ in range(3)]
    first.save(tmp_path / "some.pt")
    after = [first.advance() for _ in range(3)]
    again = Run(found, TINY, settings, "cpu")
    again.load(tmp_path / "some.pt")
    assert [again.advance() for _ in range(3)] == after
    later = [first.advance() for _ in range(14)]
    assert sum(later[-5:]) < sum(losses[:3]) * 5 / 3 * 0.9
    with pytest.raises(TrainingError, match="other settings"):
        Run(found, TINY, replace(settings, batch=4), "cpu").load(tmp_path / "some.pt")
    vectors = whole.adapters([encode_adapter(adapter(n), bank()) for n in range(2)])
    assert vectors.shape == (2, 512)


def test_the_commands_train_measure_and_compare(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(corpus), "--index", str(corpus.with_name("index")), "--out", str(tmp_path / "out"),
              "--device", "cpu", "--jobs", "1", "--without", "drawn"]  # fmt: skip
    small = ["--steps", "4", "--batch", "8", "--every", "4", "--width", "16", "--layers", "1"]
    main(["train", *common, *small])
    main(["evaluate", *common])
    main(["map", *common])
    with Image.open(tmp_path / "out" / "map.png") as drawn:
        assert drawn.size == (1600, 1600)
    main(["baselines", *common, "--steps", "1"])
    measured = json.loads((tmp_path / "out" / "test.json").read_text())
    assert set(measured) == {"text", "adapter", "image", "text, half of the layers missing"}
    assert measured["text"]["queries"] == 3
    assert measured["adapter"]["queries"] == 3
    compared = json.loads((tmp_path / "out" / "baselines-test.json").read_text())
    assert {"text: chance", "text: text probes", "adapter: raw factors", "AutoLoRA"} <= set(compared)
    assert "recall@10" in capsys.readouterr().out
    # The index takes the encoder up, renews its rows, and answers texts and pictures by it.
    place = corpus.with_name("index")
    (place / "encoders").mkdir()
    (tmp_path / "out" / "glyph.safetensors").rename(place / "encoders" / "glyph.safetensors")
    encoders = shipped_encoders(place)
    encoders["glyph"].states = tokens
    collection = Collection(place, encoders=encoders)
    report = build([corpus / "adapters"], collection, jobs=1)
    assert (report.renewed, report.rows) == (18, 18)
    searcher = Searcher(collection, encoders, states={"glyph": spoken})
    answer = searcher.text("an owl", 3)
    assert "learned" in answer.used
    assert not answer.notes
    assert 0 <= answer.confidence <= 1
    shown = searcher.image(Image.new("RGBA", (40, 20), (0, 0, 0, 0)), 3)
    assert shown.used == ("learned",)
    assert len(shown.hits) == 3
    assert "learned" not in searcher.like("zq00", 3).used  # nothing was drawn
    assert searcher._learned(encoders["glyph"].texts(["an owl"])[0], "glyph", None)[1] == frozenset()
    encoders["glyph"].words = frozenset({"red", "owl"})
    assert searcher._signs("an owl", "glyph", frozenset()).known == 1
    assert searcher._signs("a ship", "glyph", frozenset()).known == 0
    assert searcher._signs("a ship", "glyph", frozenset(), seen=True).known == 1


def test_halved_adapters_keep_half_of_their_layers(corpus: Path, tmp_path: Path) -> None:
    found = read_corpus(corpus)
    half = halved(found, "glyph", tmp_path / "half")
    for whole, poorer in zip(found.entries[:4], half.entries, strict=False):
        layers, kept = load(whole.file).layers, load(poorer.file).layers
        assert len(kept) == (len(layers) + 1) // 2
        path = next(iter(kept))
        assert torch.allclose(kept[path].delta(), layers[path].delta(), atol=1e-3)
    assert [entry.concept for entry in half.entries] == [entry.concept for entry in found.entries]


def test_calibration_tells_matches_from_others(corpus: Path) -> None:
    found = loaded(corpus)
    run = Run(found, TINY, Settings(steps=20, batch=8, warm=4, rate=2e-3), "cpu")
    for _ in range(20):
        run.advance()
    slope, offset = calibrate(run.towers.eval(), found, "train")
    assert slope > 0
    chance = Calibration(slope, offset)
    assert 0 <= chance(-1.0) < chance(0.5) < chance(1.0) <= 1
