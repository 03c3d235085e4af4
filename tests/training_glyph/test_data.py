"""Laws of the data: who sees what, what captions and filters may do, what folders hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from loracomp.training.glyph.adapters import accelerator_folder
from loracomp.training.glyph.augment import palette, side_by_side
from loracomp.training.glyph.captions import Shown, caption
from loracomp.training.glyph.cells import ALL_STYLES, halves, judge_may_see
from loracomp.training.glyph.clock import learning_rate
from loracomp.training.glyph.examples import write_examples
from loracomp.training.glyph.filters import FILTERS, over
from loracomp.training.glyph.judge_batch import joined
from loracomp.training.glyph.judge_report import held_out_cells
from loracomp.training.glyph.lookalikes import draw_groups, groups, near_copies
from loracomp.training.glyph.manifest import manifest
from loracomp.training.glyph.packages import BASE_STYLES, UNSEEN_STYLES
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.render import placed, rasterize
from loracomp.training.glyph.splits import (
    committed,
    judge_held_out,
    unseen_subjects,
    vae_held_out,
)
from loracomp.training.glyph.store import Store, load, save
from loracomp.training.glyph.subjects import Icon, Subject
from loracomp.training.glyph.vae import VaeConfig, build_vae, encode, reconstruct, whiten

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_splits_are_64_subjects_each_and_share_none() -> None:
    assert len(unseen_subjects()) == len(vae_held_out()) == 64
    assert not unseen_subjects() & vae_held_out()


def test_the_committed_manifest_keeps_every_split() -> None:
    seen = committed("manifest.json.xz")
    assert set(seen["denoiser"]) == set(BASE_STYLES)
    assert not any(unseen_subjects() & set(slugs) for slugs in seen["denoiser"].values())
    assert not any(vae_held_out() & set(slugs) for slugs in seen["vae"].values())
    assert not any(s in seen["judge"][style] for s, style in held_out_cells())


def test_the_manifest_is_what_the_code_selects(store: Store) -> None:
    seen = manifest(store)
    assert "watermelon" not in seen["denoiser"]["noto"]
    assert all("watermelon" not in slugs for slugs in seen["vae"].values())
    assert "red-apple" not in seen["vae"]["noto"]
    assert set(seen["denoiser"]) == set(BASE_STYLES)


def test_no_example_shows_an_unseen_subject_in_an_unseen_style() -> None:
    files = sorted(EXAMPLES.glob("*/*/manifest.json"))
    assert len(files) == 6
    for file in files:
        for row in json.loads(file.read_text()):
            assert (file.parent / row["file"]).with_suffix(".txt").read_text().strip()
            assert not (row["subject"] in unseen_subjects() and row["style"] in UNSEEN_STYLES)
            assert row["subject"] not in vae_held_out()


def test_a_drawing_with_a_held_out_cell_is_not_filtered_either() -> None:
    icon = Icon("key", "noto", "")
    assert judge_may_see(icon, "pixel", frozenset({("key", "twemoji")}))
    assert not judge_may_see(icon, "pixel", frozenset({("key", "noto")}))
    assert not judge_may_see(icon, "pixel", frozenset({("key", "pixel")}))
    assert not judge_may_see(icon, "mono", frozenset())


def test_held_out_cells_cover_every_style_and_split_without_overlap() -> None:
    calibrating, testing = halves(held_out_cells())
    for style in ALL_STYLES:
        assert sum(s == style for _, s in calibrating) == 30
        assert sum(s == style for _, s in testing) == 70
    assert not set(calibrating) & set(testing)
    assert judge_held_out() == set(calibrating) | set(testing)


def test_lookalikes_join_genders_and_near_copies() -> None:
    slugs = ["man-cook", "woman-cook", "cook", "key", "old-key", "fire"]
    people = {"man-cook", "woman-cook", "cook"}
    subjects = {s: Subject(s, s, "People & Body" if s in people else "Objects", ()) for s in slugs}
    picture = torch.rand(3, 128, 128)
    style = {"key": picture, "old-key": picture.clone(), "fire": 1 - picture}
    assert near_copies(style) == [("key", "old-key")]
    found = draw_groups(subjects, {"noto": style, "flat": style})
    assert found == [["cook", "man-cook", "woman-cook"], ["key", "old-key"]]
    assert all(len(group) > 1 for group in groups())


def test_an_accelerator_is_shown_only_what_the_base_saw(store: Store) -> None:
    found = accelerator_folder(store, count=40)
    assert len(found) == 24
    assert len({(picture.subject, picture.style) for picture in found}) == 24
    assert {picture.style for picture in found} == set(BASE_STYLES)
    assert not {picture.subject for picture in found} & unseen_subjects()
    assert len({picture.caption for picture in found}) > 12
    again = accelerator_folder(store, count=8)
    for first, second in zip(found, again, strict=False):
        assert first.caption == second.caption
        assert np.array_equal(first.pixels, second.pixels)


def test_the_store_survives_a_round_trip(store: Store, tmp_path: Path) -> None:
    first = save(tmp_path, store).read_bytes()
    again = load(tmp_path)
    assert save(tmp_path, again).read_bytes() == first
    assert again.subjects == store.subjects
    assert len(again.icons) == len(store.icons)


def test_placement_scales_and_moves_the_icon() -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">'
    svg += '<rect width="10" height="10" fill="red"/></svg>'
    assert 'viewBox="-5.0000 -5.0000 20.0000 20.0000"' in placed(svg, (0.5, 0.0, 0.0))
    alpha = rasterize(svg, (0.5, 0.25, 0.0))[..., 3]
    columns = np.nonzero(alpha.any(0))[0]
    assert (columns.min(), columns.max()) == (64, 127)
    assert alpha.mean() / 255 == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("name", [*FILTERS])
def test_filters_stay_in_range_and_repeat(name: str, pictures: Pictures) -> None:
    rgba = pictures.standard(torch.arange(4))
    back = palette()[[0, 1, 5, 11]]
    made = FILTERS[name](rgba, back)
    assert made.shape == (4, 3, 128, 128)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert torch.equal(made, FILTERS[name](rgba, back))
    assert float((made - over(rgba, back)).abs().mean()) > 0.01


def test_pairs_keep_each_half_on_its_side() -> None:
    red = torch.tensor([1.0, 0, 0, 1])[None, :, None, None].expand(1, 4, 8, 8)
    blue = torch.tensor([0, 0, 1.0, 1])[None, :, None, None].expand(1, 4, 8, 8)
    both = side_by_side(red, blue)[0]
    assert both.shape == (4, 8, 8)
    assert both[3, :2].sum() == both[3, 6:].sum() == 0
    assert (both[0, 2:6, :4] == 1).all()
    assert (both[2, 2:6, 4:] == 1).all()


def test_captions_name_what_is_shown() -> None:
    rng = np.random.default_rng(0)
    rocket = Subject("rocket", "rocket", "Travel & Places", ("space", "launch"))
    texts = [caption(Shown(rocket, "noto style", "blue", tint="green"), rng) for _ in range(300)]
    assert len(set(texts)) > 60
    assert sum("blue" in t for t in texts) > 240
    assert 180 < sum("noto style" in t for t in texts) < 270
    assert sum("green rocket" in t for t in texts) > 240


def test_joined_captions_read_start_parts_end() -> None:
    pieces = torch.tensor([[5, 6, 1], [7, 8, 9]]), torch.tensor([2, 3])
    rows, yes = torch.tensor([0, 1]), torch.tensor([True, True])
    out = joined([(pieces, rows, yes), (pieces, rows, torch.tensor([False, True]))])
    assert out[0, :5].tolist() == [0, 5, 6, 1, 1]
    assert out[1, :9].tolist() == [0, 7, 8, 9, 7, 8, 9, 1, 1]


def test_whitening_changes_latents_and_no_picture() -> None:
    torch.manual_seed(0)
    vae = build_vae(VaeConfig(widths=(8, 8, 8, 8), latents=4, groups=4)).eval()
    pictures = torch.rand(6, 3, 32, 32) * 2 - 1
    before, latents = reconstruct(vae, pictures), encode(vae, pictures)
    whiten(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    after = encode(vae, pictures)
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(reconstruct(vae, pictures), before, atol=1e-3, rtol=0)


def test_the_learning_rate_rises_holds_and_ends_at_zero() -> None:
    rates = [learning_rate(1.0, step, f, warm=10) for step, f in ((0, 0.0), (9, 0.2), (99, 1.0))]
    assert rates == pytest.approx([0.1, 1.0, 0.0])


def test_examples_are_written_with_captions(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loracomp.training.glyph.examples.EXAMPLE_SUBJECTS", ("watermelon",))
    write_examples(tmp_path, store.icons, store.subjects)
    rows = json.loads((tmp_path / "styles/mono/manifest.json").read_text())
    assert {row["subject"] for row in rows} == {"rocket", "pizza", "fire", "key", "balloon"}
    texts = [p.read_text() for p in (tmp_path / "subjects/watermelon").glob("*.txt")]
    assert len(texts) == 8
    assert all(text.startswith("a watermelon emoji, ") for text in texts)
