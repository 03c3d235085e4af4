"""The corpus' pictures: every look does something, nothing is empty, the same plan draws the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loracomp.errors import TrainingError
from loracomp.training.corpus.__main__ import main
from loracomp.training.corpus.arrangements import ARRANGE, fitted
from loracomp.training.corpus.concepts import Concept
from loracomp.training.corpus.filters import FILTERS, OWN_PAPER
from loracomp.training.corpus.looks import Look, apply
from loracomp.training.corpus.pictures import deal, draw, render, shots
from loracomp.training.corpus.plan import PICTURES, adapters, concepts, sample
from loracomp.training.corpus.pools import FILTER_SETTINGS, recolorings
from loracomp.training.corpus.recolor import RECOLORINGS
from loracomp.training.corpus.store import read_plan, write_plan, write_table
from loracomp.training.dataset import read_dataset
from loracomp.training.glyph.render import rasterize
from loracomp.training.glyph.splits import unseen_subjects
from loracomp.training.glyph.store import Store


@pytest.fixture(scope="module")
def drawings(store: Store) -> Tensor:
    """Three icons as (3, 128, 128, 4) bytes."""
    return torch.stack([torch.from_numpy(rasterize(icon.svg).copy()) for icon in store.icons[5:8]])


def _back(color: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
    return torch.tensor([color]).expand(3, 3)


@pytest.mark.parametrize("family", FILTERS)
def test_filters_change_pictures_and_tell_them_apart(family: str, drawings: Tensor) -> None:
    plain = apply((), drawings, _back())
    for settings in FILTER_SETTINGS[family]:
        look = (Look.of("filter", family, **settings),)
        made = apply(look, drawings, _back())
        assert made.shape == (3, 3, 128, 128)
        assert bool(made.isfinite().all())
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        assert float((made - plain).abs().mean()) > 0.004
        assert float((made[0] - made[1]).abs().mean()) > 0.005
        assert torch.equal(made, apply(look, drawings, _back()))
        torch.testing.assert_close(apply(look, drawings[1:2], _back()[:1])[0], made[1], atol=1e-5, rtol=0)
        on_blue = apply(look, drawings, _back((0.2, 0.3, 0.9)))
        shown = float((on_blue - made).abs().mean())
        assert shown < 0.02 if family in OWN_PAPER and family != "photograph" else shown > 0.02


def test_recolorings_change_colors_and_keep_shapes(drawings: Tensor) -> None:
    import numpy as np

    looks = recolorings(np.random.default_rng(0))
    assert {look.family for look in looks} == set(RECOLORINGS)
    assert len(set(looks)) == len(looks)
    plain = apply((), drawings, _back())
    outside = drawings[..., 3][:, None] == 0
    for look in looks:
        made = apply((look,), drawings, _back())
        assert float((made - plain).abs().mean()) > 0.002, look
        if look.family != "rimmed":
            assert bool((made[outside.expand_as(made)] == 1).all())


@pytest.mark.parametrize("name", ARRANGE)
def test_arrangements_show_both_subjects(name: str, drawings: Tensor) -> None:
    rgba = drawings.permute(0, 3, 1, 2) / 255
    one, other, third = (rgba[i : i + 1] for i in range(3))
    made = ARRANGE[name](one, other)
    assert made.shape == one.shape
    for changed in (ARRANGE[name](third, other), ARRANGE[name](one, third)):
        assert float((made - changed).abs().mean()) > 0.005
    assert not bool(fitted(torch.zeros(1, 4, 128, 128), 60).any())


def test_every_concept_draws_distinct_pictures_that_are_not_empty(store: Store) -> None:
    """Two of each kind: the first and the last. Captions call the trigger and never the concept."""
    planned = concepts(store)
    for kind in ("subject", "style", "filter", "mixture"):
        own = [concept for concept in planned if concept.kind == kind]
        for concept in (own[0], own[-1]):
            wanted = shots(concept, store)
            pictures = draw(concept, wanted)
            assert pictures.shape == (PICTURES, 128, 128, 3)
            assert all(float(picture.float().std()) > 2 for picture in pictures)
            assert len({hashlib.sha256(p.numpy().tobytes()).hexdigest() for p in pictures}) > PICTURES // 2
            assert torch.equal(pictures, draw(concept, shots(concept, store)))
            for shot in wanted:
                assert concept.trigger in shot.caption
                assert not any(name in shot.caption for name in concept.names)


def test_styles_are_shown_on_subjects_that_the_bench_does_not_use(store: Store) -> None:
    hidden = {store.subjects[slug].name for slug in unseen_subjects() if slug in store.subjects}
    looks = [concept for concept in concepts(store) if not concept.subjects]
    named = {shot.caption[2:].split(" emoji")[0] for concept in looks[:12] for shot in shots(concept, store)}
    assert len(named) > 50
    assert not named & hidden


def test_folders_are_shared_links_that_the_trainer_reads(store: Store, tmp_path: Path) -> None:
    planned = adapters(sample(concepts(store), 2), small=True)
    render([adapter.concept for adapter in planned], store, tmp_path, workers=1)
    deal(planned, tmp_path)
    deal(planned, tmp_path)
    digests: dict[str, set[str]] = {}
    for adapter in planned:
        data = read_dataset(tmp_path / "data" / adapter.name)
        assert len(data.pictures) == len(adapter.pictures)
        assert data.cells == ()
        assert all(adapter.concept.trigger in (picture.caption or "") for picture in data.pictures)
        digests.setdefault(adapter.concept.id, set()).update(p.digest for p in data.pictures)
    assert all(len(found) <= PICTURES for found in digests.values())


def test_the_commands_plan_draw_and_tabulate(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny import random_adapter

    from loracomp import formats
    from loracomp.bases import modules

    monkeypatch.setattr("loracomp.training.glyph.store.load", lambda folder: store)
    out = tmp_path / "corpus"
    place = ["--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(["data", *place])
    assert ended.value.code == 4
    assert "no corpus" in capsys.readouterr().err
    main(["plan", *place, "--sample", "4"])
    main(["data", *place, "--workers", "1"])
    corpus = read_plan(out)
    assert len(corpus.adapters) == 4
    with pytest.raises(TrainingError, match="no adapters"):
        write_table(out, corpus)
    (out / "adapters").mkdir()
    made = random_adapter(modules("glyph"), ("to_q",), base="glyph")
    formats.save(made, out / "adapters" / f"{corpus.adapters[0].name}.safetensors")
    main(["manifest", *place])
    (row,) = [json.loads(line) for line in (out / "corpus.jsonl").read_text().splitlines()]
    assert row["concept"] == corpus.adapters[0].concept.id
    assert row["digest"] == formats.load(out / row["file"]).digest
    assert {row["concept_split"], row["seed_split"]} <= {"train", "validation", "test"}


def test_a_drawing_that_is_missing_is_named(store: Store) -> None:
    concept = Concept("c000", "subject", "wumbol", "train", ("no-such-thing",), ("thing",))
    with pytest.raises(TrainingError, match="no-such-thing"):
        shots(concept, store)


def test_plans_of_one_store_are_written_alike(store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_plan(tmp_path / name, adapters(concepts(store)))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
