"""The towers that look at what adapters draw: what is read when, and that they learn it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from known_adapters import adapter, bank

from loracomp.errors import TrainingError
from loracomp.retrieval.encoder import LearnedEncoder, Towers, load_encoder
from loracomp.retrieval.encoding import encode_adapter
from loracomp.retrieval.making import rows
from loracomp.retrieval.said import Said
from loracomp.retrieval.sites import site_table
from loracomp.retrieval.towers import DRAWN, PICTURE, Batch, EncoderConfig, batch
from loracomp.training.encoder.data import SPLITS, Material
from loracomp.training.encoder.evaluate import SHARES, balance, report, text_to_adapter
from loracomp.training.encoder.objective import SHOWS, UNKNOWN
from loracomp.training.encoder.train import Run, Settings, train
from loracomp.training.encoder.wide import Wide

BOTH = EncoderConfig("glyph", 256, width=16, layers=1, heads=2, narrow=8, drawn=True)
ALONE = replace(BOTH, weights=False)
WIDTH = 8


def pictures(seed: int, count: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, DRAWN, 3, PICTURE, PICTURE), generator=source).to(torch.uint8)


def towers(config: EncoderConfig) -> Towers:
    torch.manual_seed(0)
    return Towers(config).eval()


@torch.no_grad()
def test_an_adapter_is_read_by_what_there_is() -> None:
    both, drawn = encode_adapter(adapter(1), bank()), pictures(1, 2)
    found = batch([both, replace(both, drawn=drawn[0]), replace(both, drawn=drawn[1])], 256)
    assert found.shown is not None
    assert found.shown.tolist() == [False, True, True]
    seen = towers(BOTH)
    assert seen.adapter is not None
    vectors = seen.adapters(found)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(vectors[0], seen.adapter(found)[0], atol=1e-6)
    assert not torch.allclose(vectors[1], vectors[2], atol=1e-3)
    assert torch.allclose(seen.adapters(batch([both], 256))[0], vectors[0], atol=1e-6)
    alone = towers(ALONE).adapters(found)
    assert alone.isfinite().all(1).tolist() == [False, True, True]


def test_rows_of_adapters_that_cannot_be_read_have_no_vector() -> None:
    from loracomp.retrieval.encoding import Encoded, Facts

    facts = Facts("", "", "", "glyph", "", "", "", "", "", 1, 1, "", 1, 1.0, True, "")
    plain = encode_adapter(adapter(1), bank())
    made = [
        Encoded(replace(facts, id="a"), plain),
        Encoded(replace(facts, id="b"), replace(plain, drawn=pictures(2, 1)[0])),
    ]
    encoder = LearnedEncoder(towers(ALONE))
    first, second = rows(made, "glyph", {"glyph": bank()}, {"glyph": encoder})
    assert (first["learned"], second["learned"]) == (False, True)
    assert first["v_learned"] is None
    assert second["v_learned"].shape == (512,)


def test_both_configurations_survive_a_file(tmp_path: Path) -> None:
    found = batch([replace(encode_adapter(adapter(1), bank()), drawn=pictures(3, 1)[0])], 256)
    for config in (BOTH, ALONE):
        encoder = LearnedEncoder(towers(config))
        encoder.save(tmp_path / "glyph.safetensors")
        again = load_encoder(tmp_path / "glyph.safetensors")
        assert again.name == encoder.name
        with torch.no_grad():
            assert torch.allclose(again.towers.adapters(found), encoder.towers.adapters(found), atol=5e-3)


def material(count: int = 24, concepts: int = 6) -> Material:
    """Adapters that paint everything in the color of their concept, said by a direction of its own."""
    source = torch.Generator().manual_seed(0)
    table, owners = site_table("glyph"), torch.arange(count) % concepts
    colors = torch.tensor([[r, g, b] for r in (40, 220) for g in (40, 220) for b in (40, 220)])[:concepts]
    noise = torch.randint(30, (count, DRAWN, 3, PICTURE, PICTURE), generator=source)
    drawn = (colors[owners][:, None, :, None, None] + noise).to(torch.uint8)
    rows = Batch(
        torch.zeros(count, len(table), dtype=torch.bool), torch.zeros(count, 0, 0), torch.zeros(count, 0, 1),
        torch.zeros(count, dtype=torch.bool), drawn, torch.ones(count, dtype=torch.bool),
    )  # fmt: skip
    states = torch.eye(WIDTH)[:concepts].repeat_interleave(2, 0)
    said = Said(states[:, None], torch.ones(len(states), 1, dtype=torch.bool))
    shown = (colors[:, :, None, None] + torch.zeros(1, 1, PICTURE, PICTURE)).to(torch.uint8)
    train, validation, test = (SPLITS.index(name) for name in ("train", "validation", "test"))
    later = torch.where(owners < concepts - 1, validation, test)
    split = torch.where(owners < concepts - 2, train, later)
    wide = Wide(
        Said(torch.eye(WIDTH)[:, None, None].repeat(1, 4, 1, 1), torch.ones(WIDTH, 4, 1, dtype=torch.bool)),
        torch.zeros(WIDTH, 4, 3, PICTURE, PICTURE, dtype=torch.uint8),
        torch.full((WIDTH, DRAWN, 3, PICTURE, PICTURE), 255, dtype=torch.uint8),
        torch.arange(WIDTH) % 2 == 0,
        torch.ones(WIDTH, dtype=torch.bool),
    )
    plain = torch.full((DRAWN, 3, PICTURE, PICTURE), 255, dtype=torch.uint8)
    return Material(
        table, rows, owners, split, said, torch.arange(concepts).repeat_interleave(2), shown,
        torch.arange(concepts), tuple(f"c{n}" for n in range(concepts)), torch.zeros(WIDTH),
        tuple(Path(f"{n}.safetensors") for n in range(count)), plain, wide,
    )  # fmt: skip


SMALL = replace(ALONE, text_width=WIDTH)


def test_adapters_are_found_by_what_they_draw(tmp_path: Path) -> None:
    found = replace(material(), wide=None)
    settings = Settings(steps=30, minutes=1e6, batch=8, warm=3, every=15, rate=3e-3, patience=99)
    encoder = train(found, SMALL, settings, tmp_path, say=lambda line: None)
    measured = report(encoder.towers, found, "test")
    assert measured["adapter"]["mrr"]["mean"] > 0.9
    assert set(measured) == {"text", "adapter", "image"}
    with pytest.raises(TrainingError, match="nothing was drawn"):
        Run(replace(found, plain=None), SMALL, settings, "cpu")


def test_training_with_further_words_goes_on_exactly(tmp_path: Path) -> None:
    found = material()
    settings = Settings(steps=9, minutes=1e6, batch=6, warm=3, every=9, rate=2e-3, patience=99)
    first = Run(found, SMALL, settings, "cpu")
    for _ in range(3):
        first.advance()
    first.save(tmp_path / "some.pt")
    after = [first.advance() for _ in range(3)]
    again = Run(found, SMALL, settings, "cpu")
    again.load(tmp_path / "some.pt")
    assert [again.advance() for _ in range(3)] == after


def test_imitated_subjects_show_in_drawings_of_unknown_words() -> None:
    found = material()
    run = Run(found, SMALL, Settings(batch=6), "cpu")
    assert found.wide is not None
    used = torch.zeros(400, dtype=torch.long)  # a concept with a subject: its pictures are black
    black = (run.objective._imitated(found.wide, used).amax((2, 3, 4)) < 0.5).float().mean(0)
    assert black[:UNKNOWN].mean() == pytest.approx(SHOWS[0], abs=0.08)
    assert black[UNKNOWN:].mean() == pytest.approx(SHOWS[1], abs=0.08)
    without = run.objective._imitated(found.wide, used + 1)
    assert bool((without == 1).all())


def test_weights_do_not_move_texts_and_pictures() -> None:
    found = material()
    numbers = torch.randn(
        len(found.concepts), len(found.table), 541, generator=torch.Generator().manual_seed(2)
    )
    rows = replace(
        found.rows,
        sites=numbers,
        spoken=torch.zeros(len(numbers), 18, 2 * WIDTH + 1),
        present=numbers[..., 0] > -9,
    )
    run = Run(replace(found, rows=rows), replace(SMALL, weights=True), Settings(batch=6), "cpu")
    adapter, pulls = run.towers.eval().adapter, []
    assert adapter is not None
    for _ in range(2):
        run.objective.draws.manual_seed(0)
        run.objective.noise.manual_seed(0)
        run.towers.zero_grad()
        run.objective().backward()
        pulls.append(
            {n: p.grad.clone() for n, p in run.towers.named_parameters() if n.startswith(("text", "image"))}
        )
        assert any(float(p.grad.abs().sum()) > 0 for p in adapter.parameters() if p.grad is not None)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    assert all(torch.allclose(pulls[0][name], pulls[1][name], atol=1e-6) for name in pulls[0])


def test_the_share_of_weights_is_what_finds_most() -> None:
    found = material()
    both = Towers(replace(SMALL, weights=True)).eval()
    numbers = torch.zeros(len(found.concepts), len(found.table), 541)
    numbers[..., :5] = torch.randn(len(numbers), 1, 5, generator=torch.Generator().manual_seed(1))
    spoken = torch.zeros(len(numbers), 18, 2 * WIDTH + 1)
    present = torch.arange(len(numbers))[:, None].expand(-1, len(found.table)) > 0  # the first has none
    rows = replace(found.rows, sites=numbers, spoken=spoken, present=present)
    given = replace(found, rows=rows)
    shown = {}
    for share in SHARES:
        both.share.fill_(share)
        shown[share] = text_to_adapter(both, given, "validation")
    best = balance(both, given)
    value = {share: round(v["recall@10"].mean + v["mrr"].mean, 9) for share, v in shown.items()}
    assert value[round(float(both.share), 2)] == max(value.values())
    assert best["mrr"].mean == pytest.approx(shown[round(float(both.share), 2)]["mrr"].mean)
    both.share.fill_(0.0)
    assert torch.allclose(both.adapters(rows), both.readings(rows)[0], atol=1e-6)
