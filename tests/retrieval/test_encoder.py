"""The learned encoder: what its towers ignore, what its losses, its rival and its map are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from known_adapters import adapter, bank
from PIL import Image

from loracomp.errors import FormatError
from loracomp.lowrank import LowRank
from loracomp.retrieval.autolora import AutoLoRA
from loracomp.retrieval.encoder import (
    Calibration,
    LearnedEncoder,
    Towers,
    load_encoder,
    picture,
    shipped_encoders,
)
from loracomp.retrieval.encoding import encode_adapter
from loracomp.retrieval.sites import site_table
from loracomp.retrieval.towers import EncoderConfig, batch
from loracomp.training.encoder.losses import multi_positive, symmetric, within
from loracomp.training.encoder.map import draw_map, layout
from loracomp.training.encoder.masks import keeps, thinned

TABLE = site_table("glyph")
TINY = EncoderConfig("glyph", 256, width=16, layers=1, heads=2, narrow=8)


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
    encoder = LearnedEncoder(towers(config=EncoderConfig("glyph", 256, drawn=True)), Calibration(9.0, -3.0))
    encoder.save(tmp_path / "glyph.safetensors")
    assert (tmp_path / "glyph.safetensors").stat().st_size < 3_000_000
    again = load_encoder(tmp_path / "glyph.safetensors")
    assert again.knows("a violin") == 1
    taught = replace(encoder, words=frozenset({"violin", "red"}))
    taught.save(tmp_path / "taught.safetensors")
    assert load_encoder(tmp_path / "taught.safetensors").knows("a red owl in the style of violins") == 2 / 3
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
