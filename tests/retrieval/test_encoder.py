"""The learned encoder: what its towers ignore, what its losses are, and a whole training at tiny size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from known_adapters import adapter, bank, spoken
from PIL import Image

import loracomp.retrieval.bank
from loracomp.adapter import Adapter
from loracomp.errors import FormatError, TrainingError
from loracomp.formats import save
from loracomp.lowrank import LowRank
from loracomp.retrieval.autolora import AutoLoRA
from loracomp.retrieval.building import build
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.encoder import (
    Calibration,
    LearnedEncoder,
    Towers,
    load_encoder,
    picture,
    shipped_encoders,
)
from loracomp.retrieval.encoding import encode_adapter
from loracomp.retrieval.search import Searcher
from loracomp.retrieval.sites import site_table
from loracomp.retrieval.towers import EncoderConfig, batch
from loracomp.training.encoder.__main__ import main
from loracomp.training.encoder.data import Material, material, read_corpus
from loracomp.training.encoder.evaluate import calibrate
from loracomp.training.encoder.losses import multi_positive, symmetric, within
from loracomp.training.encoder.map import draw_map, layout
from loracomp.training.encoder.masks import keeps, thinned
from loracomp.training.encoder.train import Run, Settings, train

TABLE = site_table("glyph")
TINY = EncoderConfig("glyph", 256, width=16, layers=1, heads=2, narrow=8)
WORDS = ("red", "blue", "cat", "owl", "ship", "tree")


def towers(seed: int = 0, config: EncoderConfig = TINY) -> Towers:
    torch.manual_seed(seed)
    return Towers(config).eval()


def test_absent_layers_and_gauges_do_not_reach_the_encoder() -> None:
    tower = towers().adapter
    plain = batch([encode_adapter(adapter(1), bank())], 256)
    noisy = replace(plain, sites=torch.where(plain.present[..., None], plain.sites, 1e3))
    with torch.no_grad():
        assert torch.allclose(tower(plain), tower(noisy), atol=1e-6)
        folded = batch([encode_adapter(adapter(1).map(LowRank.folded), bank())], 256)
        assert torch.allclose(tower(plain), tower(folded), atol=1e-3)
        others = [encode_adapter(adapter(n), bank()) for n in (2, 1)]
        assert torch.allclose(tower(batch(others, 256))[1:], tower(plain), atol=1e-5)
        deaf = batch([encode_adapter(adapter(1, suffixes=("conv1",)), bank())], 256)
        assert not deaf.heard.any()
        assert bool(tower(deaf).isfinite().all())


def test_the_shipped_shape_stays_below_three_megabytes(tmp_path: Path) -> None:
    encoder = LearnedEncoder(towers(config=EncoderConfig("glyph", 256)), Calibration(9.0, -3.0))
    encoder.save(tmp_path / "glyph.safetensors")
    assert (tmp_path / "glyph.safetensors").stat().st_size < 3_000_000
    again = load_encoder(tmp_path / "glyph.safetensors")
    assert (again.name, again.base, again.calibration) == (encoder.name, "glyph", encoder.calibration)
    rows = [encode_adapter(adapter(1), bank())]
    assert torch.allclose(again.adapters(rows), encoder.adapters(rows), atol=2e-3)
    (tmp_path / "encoders").mkdir()
    (tmp_path / "glyph.safetensors").rename(tmp_path / "encoders" / "glyph.safetensors")
    assert shipped_encoders(tmp_path)["glyph"].name == encoder.name
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(FormatError, match="not an encoder"):
        load_encoder(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("base", ["sd15", "sdxl", "flux"])
def test_towers_fit_other_bases(base: str) -> None:
    table = site_table(base)
    config = EncoderConfig(base, 0, width=16, layers=1, heads=2, narrow=4)
    site = table.sites[-1]
    layer = LowRank(torch.randn(2, site.columns), torch.randn(site.rows, 2))
    from loracomp.retrieval.features import features

    found = features({len(table) - 1: layer}, table)
    with torch.no_grad():
        vector = towers(config=config).adapter(batch([found], 0))
    assert vector.shape == (1, 512)
    assert float(vector.norm()) == pytest.approx(1.0, abs=1e-5)


def test_losses_are_what_their_formulas_say() -> None:
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=source, dtype=torch.float64)
    positive = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    rows = []
    for row in (0, 1, 3):
        shares = (logits[row].exp() / logits[row].exp().sum()).log()
        rows.append(-sum(float(shares[c]) for c in range(5) if positive[row, c]) / int(positive[row].sum()))
    assert float(multi_positive(logits, positive)) == pytest.approx(sum(rows) / 3)
    unit = torch.nn.functional.normalize(torch.randn(4, 3, generator=source), dim=1)
    eye = torch.eye(4, dtype=torch.bool)
    # One positive each is the usual contrastive loss.
    usual = torch.nn.functional.cross_entropy(unit @ unit.flip(0).T * 7, torch.arange(4))
    both = symmetric(unit, unit.flip(0), eye, 7.0)
    other = torch.nn.functional.cross_entropy(unit.flip(0) @ unit.T * 7, torch.arange(4))
    assert float(both) == pytest.approx(float(usual + other) / 2, rel=1e-5)
    assert float(within(unit, torch.arange(4), 7.0)) == 0.0
    apart = 1 - unit[0] @ unit[1]
    found = within(unit[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]), 50.0)
    assert float(found) == pytest.approx(float((1 + 2 * (-50 * apart).exp()).log()), rel=1e-4)


def test_left_out_layers_follow_patterns_and_never_all_go() -> None:
    rows = batch([encode_adapter(adapter(n), bank()) for n in range(8)], 256)
    rows = rows[torch.arange(8).repeat(40)]
    cross = torch.zeros(len(TABLE), dtype=torch.bool)
    cross[list(TABLE.cross)] = True
    kept = thinned(rows, keeps(TABLE), cross, torch.Generator().manual_seed(0))
    assert bool((kept.present <= rows.present).all())
    assert bool(kept.present.any(1).all())
    counts = kept.present.sum(1)
    assert int((counts == rows.present.sum(1)).sum()) > 60
    assert int((counts < rows.present.sum(1)).sum()) > 100
    assert bool((kept.heard == (kept.present & cross).any(1)).all())


def test_autolora_is_its_formula_and_zero_where_a_layer_is_absent() -> None:
    sites = [TABLE.sites[p] for p in TABLE.cross[:4]]
    torch.manual_seed(0)
    model = AutoLoRA(sites, width=16, heads=2).eval()
    layer = LowRank(torch.randn(3, sites[0].columns), torch.randn(sites[0].rows, 3), 6.0)
    gauge = torch.diag(torch.tensor([2.0, 0.5, -1.0]))
    turned = LowRank(torch.linalg.inv(gauge) @ layer.down, layer.up @ gauge, 6.0)
    zero = LowRank(layer.down * 0, layer.up, 6.0)
    with torch.no_grad():
        first, second, absent, nothing = model([{0: layer}, {0: turned}, {}, {0: zero}])
        token = model._token(0, [{0: layer}])[0]
        exact = model.maps[model.kinds[0]](layer.delta() @ model.probes[0])
    assert torch.allclose(token, exact, atol=1e-4)
    assert torch.allclose(first, second, atol=1e-5)
    assert torch.allclose(absent, nothing, atol=1e-6)
    assert not torch.allclose(first, absent, atol=1e-3)
    # The causal mask: what comes last does not change what the first layer sees.
    hidden = torch.randn(1, 4, 16)
    changed = hidden.clone()
    changed[:, 3] += 1
    with torch.no_grad():
        outs = [model.layers[0](part, model.mask) for part in (hidden, changed)]
    assert torch.allclose(outs[0][:, :3], outs[1][:, :3], atol=1e-6)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eighteen adapters of six concepts: each says the word of its concept, whatever its seed."""
    pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
    states = lambda base, folder, end=False: spoken  # noqa: E731
    monkeypatch.setattr(loracomp.retrieval.bank, "text_states", states)
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
    return material(found, collection, "glyph", spoken)


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
              "--device", "cpu", "--jobs", "1"]  # fmt: skip
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
    encoders["glyph"].states = spoken
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


def test_calibration_tells_matches_from_others(corpus: Path) -> None:
    found = loaded(corpus)
    run = Run(found, TINY, Settings(steps=20, batch=8, warm=4, rate=2e-3), "cpu")
    for _ in range(20):
        run.advance()
    slope, offset = calibrate(run.towers.eval(), found, "train")
    assert slope > 0
    chance = Calibration(slope, offset)
    assert 0 <= chance(-1.0) < chance(0.5) < chance(1.0) <= 1


def test_a_map_keeps_neighbours_together() -> None:
    source = torch.Generator().manual_seed(0)
    centers = torch.nn.functional.normalize(torch.randn(3, 16, generator=source), dim=1)
    vectors = centers.repeat_interleave(12, 0) + 0.1 * torch.randn(36, 16, generator=source)
    places = layout(torch.nn.functional.normalize(vectors, dim=1), perplexity=8)
    distances = torch.cdist(places, places) + torch.eye(36) * 1e9
    groups = torch.arange(36) // 12
    assert bool((groups[distances.argmin(1)] == groups).all())
    drawn = draw_map(places, [None] * 36, side=200, thumbnail=20)
    colors = drawn.getcolors()
    assert colors is not None
    assert {color: count for count, color in colors}[(128, 128, 128)] == 36 * 18 * 18


def test_pictures_are_squares_on_white() -> None:
    wide = picture(Image.new("RGB", (128, 64), "black"))
    assert wide.shape == (3, 64, 64)
    assert float(wide[:, 0].min()) == 1.0
    assert float(wide[:, 32].max()) == 0.0
    assert float(picture(Image.new("RGBA", (9, 9), (9, 9, 9, 0))).min()) == 1.0
