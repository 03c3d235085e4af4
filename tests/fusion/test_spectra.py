"""Spectra and frequency profiles: known pictures, any size, and what sampling finds in an adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import layer_table, random_adapter, tiny_pipeline

from loracomp.adapter import Adapter
from loracomp.errors import FormatError, UsageError
from loracomp.fusion.spectra import (
    FrequencyProfile,
    early,
    frequency_profile,
    gained,
    high_share,
    radial_spectrum,
)
from loracomp.lowrank import LowRank
from loracomp.pipeline.profiling import measure
from loracomp.pipeline.sampling import Setting, sample

QUICK = Setting(("{words}", "a house, {words}"), seeds=2, steps=4)


def wave(size: int, waves: int) -> torch.Tensor:
    """A plane wave with so many periods over the picture."""
    place = torch.arange(size) / size
    return torch.cos(2 * torch.pi * waves * place).expand(1, size, size)


@pytest.mark.parametrize("size", [16, 33, 64])
@pytest.mark.parametrize("waves", [0, 1, 3, 7])
def test_a_wave_lies_on_its_ring(size: int, waves: int) -> None:
    radii, shares = radial_spectrum(wave(size, waves))
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    assert float(radii[shares.argmax()]) == pytest.approx(waves / (size / 2), abs=1 / size)


@given(st.integers(2, 40), st.integers(2, 40), st.booleans())
def test_every_size_gives_finite_shares(height: int, width: int, blank: bool) -> None:
    pictures = torch.zeros(2, 3, height, width) if blank else torch.rand(2, 3, height, width) - 0.5
    radii, shares = radial_spectrum(pictures)
    assert shares.shape == (2, len(radii))
    assert bool(shares.isfinite().all()) and bool((radii.diff() > 0).all())
    share = high_share(pictures)
    assert bool(((share >= 0) & (share <= 1 + 1e-6)).all())


def test_blurring_lowers_the_share_of_high_frequencies() -> None:
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert bool((high_share(blurred) < high_share(noise)).all())


def test_gain_and_level_are_what_they_say() -> None:
    high = torch.tensor([0.1, 0.2, 0.4, 0.5, 0.9, 0.9, 0.9, 0.9])
    assert float(gained(high)) == pytest.approx(0.5 - 0.1)
    assert float(early(high)) == pytest.approx(0.3)
    assert float(gained(high[:1])) == 0


@pytest.mark.parametrize(
    ("score", "error", "band"),
    [(0.3, 0.1, "high"), (-0.3, 0.1, "low"), (0.1, 0.1, "unknown"), (0.0, 0.0, "unknown")],
)
def test_bands_need_two_standard_errors(score: float, error: float, band: str) -> None:
    profile = FrequencyProfile(score, error, high=(0.1,), plain=(0.2,))
    assert profile.band == band
    assert FrequencyProfile.from_parts(profile.to_parts()) == profile
    with pytest.raises(FormatError):
        FrequencyProfile.from_parts({"score": 1})


def test_a_profile_compares_runs_with_and_without() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(6, 4, 4, 16, 16, generator=generator)
    soft = torch.nn.functional.avg_pool2d(plain.flatten(0, 1), 3, 1, 1).view_as(plain)
    pictures = torch.rand(4, 3, 32, 32, generator=generator)
    found = frequency_profile(soft, plain, pictures, pictures)
    assert found.band == "low" and found.picture == 0
    assert frequency_profile(plain, soft, pictures, pictures).score == pytest.approx(-found.score)


def convolution(pipe: Any, kernel: torch.Tensor, name: str) -> Adapter:
    """An adapter of the UNet's last convolution whose every 3 × 3 kernel is a multiple of ``kernel``."""
    shape = layer_table(pipe)["unet.conv_out"]
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(4, shape[1], 1, 1, generator=generator) * kernel
    up = torch.randn(shape[0], 4, 1, 1, generator=generator)
    return Adapter({"unet.conv_out": LowRank(down, up)}, "custom", name)


def test_the_low_pass_twin_of_an_adapter_changes_class() -> None:
    pipe = tiny_pipeline("sd15")
    sharp = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]])
    adapter = convolution(pipe, sharp, "sharp")
    twin = convolution(pipe, torch.nn.functional.avg_pool2d(sharp.abs()[None], 3, 1, 1)[0], "soft")
    found = [measure(pipe, a, QUICK, effect=False).frequency for a in (adapter, twin)]
    assert [f.band if f else None for f in found] == ["high", "low"]


def test_names_and_files_change_nothing() -> None:
    pipe = tiny_pipeline("sd15")
    adapter = replace(random_adapter(layer_table(pipe), size=0.3), metadata={"modelspec.trigger_phrase": "x"})
    first, second = (
        measure(pipe, a, QUICK, effect=False) for a in (adapter, replace(adapter, name="style_b"))
    )
    assert first == second


def test_clean_latents_are_those_of_the_scheduler(pipe: Any) -> None:
    before = pipe.scheduler
    setting = Setting(("a cat",), seeds=2, steps=3)
    run = sample(pipe, setting, ("a cat",), [], 0.0)
    assert pipe.scheduler is before and "step" not in vars(before)
    assert run.clean.shape[:2] == (3, 2) and run.clean.ndim == 5
    assert run.clean.shape[-2:] == (16, 16) or run.clean.shape[-1] == run.clean.shape[-2]
    assert bool(run.clean.isfinite().all()) and len(run.pictures) == 2
    assert high_share(run.clean).isfinite().all()


def test_one_picture_is_refused() -> None:
    pipe = tiny_pipeline("sd15")
    with pytest.raises(UsageError, match="standard error"):
        measure(pipe, random_adapter(layer_table(pipe)), Setting(("{words}",), seeds=1, steps=2))
