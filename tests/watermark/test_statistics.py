"""Verification's laws on simulated extractors: calibrated under the null, powerful under a mark."""

from __future__ import annotations

import math
from pathlib import Path

import markworlds as worlds
import pytest
import torch
from markworlds import DIMENSIONS

from loracomp.errors import FormatError, ResourceError
from loracomp.watermark import attribution, evidence, nullworld, screening
from loracomp.watermark.calibration import Calibration, load_calibration
from loracomp.watermark.evidence import Scale
from loracomp.watermark.verdict import verify

KEYS = screening.decoy_keys(120, 32)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return screening.with_acceptance(worlds.calibration(), decoys=200)


@pytest.mark.parametrize("images", [1, 5])
def test_the_null_holds_for_biased_correlated_clustered_images(calibration: Calibration, images: int) -> None:
    rows, subject = worlds.unmarked(5000, seed=8)
    issued = [key for key in KEYS if screening.screen(calibration, key)]
    found = nullworld.measure(rows, subject, issued, scale=calibration.scale, images=images)
    assert found.sets == pytest.approx(5000 / images, rel=0.1)
    assert found.holds, found
    assert found.low <= 1e-3 <= found.high


def test_bits_of_several_images_are_no_fair_coins(calibration: Calibration) -> None:
    """The usual rule is wrong by an order of magnitude on the same images."""
    rows, subject = worlds.unmarked(5000, seed=8)
    found = nullworld.measure(rows, subject, KEYS, scale=calibration.scale, images=5)
    assert found.pooled_binomial > 10 * found.nominal
    assert found.rate < 3 * found.nominal


def test_a_constant_extractor_fails(calibration: Calibration) -> None:
    """Its p-values are right on average over keys, and the same for all images of a key."""
    rows, subject = worlds.unmarked(1000, seed=3)
    constant = rows[:1].expand(1000, -1) + 1e-4 * rows
    assert not nullworld.measure(constant, subject, KEYS, scale=calibration.scale).holds
    assert not nullworld.measure(0 * constant, subject, KEYS, scale=Scale.none(DIMENSIONS)).holds


def test_an_extractor_that_knows_a_key_fails(calibration: Calibration) -> None:
    """The null needs keys that the extractor has not seen."""
    rows, subject = worlds.unmarked(2000, seed=4)
    taught = rows + 2 * torch.stack([key.direction(DIMENSIONS) for key in KEYS[:20]]).sum(0).float()
    assert not nullworld.measure(taught, subject, KEYS[:20], scale=calibration.scale, images=5).holds


def test_p_values_are_uniform_over_keys_for_any_images(calibration: Calibration) -> None:
    rows = worlds.marked(5, KEYS[0], 3.0)  # marked for one key: still null for all others
    values = torch.tensor([evidence.score(rows, key, calibration.scale).p_key for key in KEYS[1:81]])
    for level in (0.05, 0.25, 0.5, 0.75):
        assert float((values <= level).double().mean()) == pytest.approx(level, abs=0.1)


def test_power_grows_with_strength_and_images(calibration: Calibration) -> None:
    key = worlds.key()

    def power(strength: float, images: int) -> float:
        rows = worlds.marked(20 * images, key, strength, seed=21).reshape(20, images, -1)
        return sum(evidence.score(part, key, calibration.scale).p_key <= 1e-6 for part in rows) / 20

    curve = [power(strength, 5) for strength in (0.0, 0.6, 1.2, 2.4, 4.0)]
    assert curve == sorted(curve)
    assert curve[0] == 0
    assert curve[-1] >= 0.9
    assert power(2.0, 1) <= power(2.0, 5)


def test_strength_is_linear_and_its_interval_covers(calibration: Calibration) -> None:
    key = worlds.key()
    unit = DIMENSIONS**0.5 * 0.1
    hits = 0
    for seed in range(40):
        found = evidence.score(worlds.marked(8, key, 2.0, seed), key, calibration.scale, gain=unit).strength
        hits += found.low <= 2.0 <= found.high
    assert hits >= 30
    one = evidence.score(worlds.marked(1, key, -6.0), key, calibration.scale, gain=unit)
    assert one.strength.high < 0
    assert one.p_key > 0.99
    assert math.isnan(one.accuracy_low)


def test_matches_are_counted_in_integers(calibration: Calibration) -> None:
    key = worlds.key(bits=100)
    found = evidence.score(worlds.marked(5, key, 200.0), key, calibration.scale)
    assert (found.matches, found.bits) == (100, 100)
    assert found.accuracy > 0.98


def test_the_e_value_is_worth_at_most_one_on_average() -> None:
    rows, _ = worlds.unmarked(4, seed=2)
    values = [evidence.score(rows, key, Scale.none(DIMENSIONS)).e_value for key in KEYS[:60]]
    assert sum(values) / len(values) < 2
    key = KEYS[3]
    assert evidence.score(worlds.marked(4, key, 6.0), key, Scale.of(worlds.unmarked(500)[0])).e_value > 1e3


def test_verdicts_have_three_values(calibration: Calibration) -> None:
    key = worlds.key()
    yes = verify(worlds.marked(5, key, 4.0), key, calibration)
    assert (yes.decision, yes.images) == ("verified", 5)
    assert yes.p is not None
    assert yes.p <= 1e-3
    no = verify(worlds.unmarked(5, seed=31)[0], key, calibration)
    assert no.decision == "no evidence"
    single = verify(worlds.marked(1, key, 8.0), key, calibration)
    assert single.decision == "inconclusive"
    assert "can be forged" in single.reasons[0]
    assert verify(worlds.marked(1, key, 8.0), key, calibration, weights_proven=True).decision == "verified"
    strange = verify(50 * worlds.marked(5, key, 4.0), key, calibration)
    assert strange.decision == "inconclusive"
    assert "unlike everything" in strange.reasons[0]
    assert verify(worlds.marked(5, key, 4.0), key, calibration, small=4).decision == "inconclusive"
    many = verify(worlds.marked(60, key, 4.0), key, calibration)
    assert many.decision == "inconclusive"
    assert "too few unmarked images" in many.reasons[0]


def test_images_that_cannot_be_read_are_no_evidence(calibration: Calibration) -> None:
    key = worlds.key()
    empty = torch.full((4, DIMENSIONS), math.nan)
    assert verify(empty, key, calibration).decision == "inconclusive"


def test_the_registered_keys_own_null_catches_a_bad_key(calibration: Calibration) -> None:
    """Unmarked images that lean towards a key after calibration of the mean: only the second null sees it."""
    key = worlds.key()
    rows, subject = worlds.unmarked(4000, seed=6)
    lean = (torch.rand(4000, generator=worlds.source(3)) < 0.3).float()[:, None]
    direction = key.direction(DIMENSIONS).float()
    leaning = Calibration(
        rows + 20 * lean * direction, calibration.population, subject, calibration.names, "glyph", "simulated"
    )
    sample = worlds.unmarked(1, seed=50)[0] + 20 * direction
    found = verify(sample, key, leaning, weights_proven=True)
    assert found.p_random_key <= 1e-3
    assert found.empirical is not None
    assert found.empirical.p > 0.01
    assert found.decision != "verified"
    assert not screening.screen(leaning, key)
    assert screening.screen(calibration, key)


def test_screening_costs_what_it_keeps_back(calibration: Calibration) -> None:
    assert 0.5 < calibration.acceptance <= 1
    found = verify(worlds.marked(5, worlds.key(), 2.0), worlds.key(), calibration)
    assert found.p_random_key == pytest.approx(min(1.0, found.score.p_key / calibration.acceptance))


def test_calibration_survives_its_file(calibration: Calibration, tmp_path: Path) -> None:
    path = calibration.save(tmp_path / "c.safetensors")
    again = load_calibration(path)
    key = worlds.key()
    rows = worlds.marked(5, key, 3.0)
    assert again.names == calibration.names
    assert verify(rows, key, again).decision == verify(rows, key, calibration).decision
    assert load_calibration(path).digest == again.digest
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="no calibration file"):
        load_calibration(path)
    with pytest.raises(ResourceError, match="watermark calibrate"):
        load_calibration(path.with_name("none"))
    with pytest.raises(FormatError, match="calibration of 256 coordinates"):
        verify(rows[:, :100], key, calibration)


def test_attribution_names_the_marked_and_no_other(calibration: Calibration) -> None:
    keys = [worlds.key(f"lora-{n}") for n in range(20)]
    unit = DIMENSIONS**0.5 * 0.1
    rows, _ = worlds.unmarked(5, seed=77)
    for number, strength in ((2, 4.0), (7, 2.5), (11, 4.0)):
        rows = rows + strength * unit * keys[number].direction(DIMENSIONS).float()
    parts = attribution.attribute(rows, keys, calibration, gains=[unit] * 20)
    assert {part.lora for part in parts if part.named} == {"lora-2", "lora-7", "lora-11"}
    assert sum(part.share for part in parts) == pytest.approx(1)
    fitted = attribution.relative_strengths(rows, [keys[2], keys[7], keys[11]], calibration) / unit
    assert fitted.tolist() == pytest.approx([4.0, 2.5, 4.0], abs=1.5)


def test_false_discoveries_stay_rare(calibration: Calibration) -> None:
    keys = [worlds.key(f"lora-{n}") for n in range(20)]
    found, few = 0, keys[:8]
    for seed in range(12):
        rows, _ = worlds.unmarked(5, seed=200 + seed)
        found += any(part.named for part in attribution.attribute(rows, few, calibration))
    assert found <= 1


def test_adjusted_p_values() -> None:
    """Against the definitions."""
    values = [0.01, 0.04, 0.03, 0.005]
    assert attribution.benjamini_hochberg(values) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert attribution.holm(values) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_sets_are_disjoint_and_of_one_source() -> None:
    from loracomp.watermark.groups import grouped

    clusters = torch.arange(103) % 10
    sets = grouped(clusters, 5)
    assert sets.shape == (20, 5)
    assert len(sets.unique()) == 100
    assert sum(len(clusters[row].unique()) == 1 for row in sets) == 20
