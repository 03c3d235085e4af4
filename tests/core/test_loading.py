"""The embedded base, and what opening a base means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loracomp.bases import BASES
from loracomp.errors import FormatError, LoracompError, ResourceError
from loracomp.loading import PACKAGE, SCHEDULERS, asset_path, defaults, open_base

GLYPH = PACKAGE / "assets" / "glyph"


@pytest.mark.filterwarnings("ignore")
def test_plain_diffusers_opens_glyph_and_draws() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(GLYPH, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red apple emoji", num_inference_steps=2, output_type="pt").images[0]
    assert image.shape == (3, 128, 128)
    assert image.isfinite().all()


def test_the_row_of_glyph_says_what_the_model_is() -> None:
    row, pipe = BASES["glyph"], open_base("glyph")
    assert type(pipe).__name__ == row.pipeline
    assert pipe.vae.config.latent_channels == row.latent_channels == pipe.unet.config.in_channels
    assert pipe.scheduler.config.prediction_type == row.prediction
    assert pipe.vae_scale_factor * pipe.unet.config.sample_size == row.resolution
    assert pipe.dtype == torch.float32
    own = defaults("glyph", row)
    assert set(own) == {"steps", "guidance", "guidance_rescale"}


def test_shipped_assets_stay_light() -> None:
    def weigh(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert weigh(GLYPH) < 38.1e6
    assert weigh(PACKAGE / "assets") < 56e6


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_exists(name: str) -> None:
    import diffusers

    assert hasattr(diffusers, SCHEDULERS[name][0])


def test_only_glyph_is_an_asset() -> None:
    assert [name for name, base in BASES.items() if asset_path(base)] == ["glyph"]


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
def test_single_files_are_told_apart_by_their_tensors(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from loracomp.loading import _checkpoint_base

    prefix = "" if kind == "sdxl" else "model.diffusion_model."
    save_file({prefix + BASES[kind].checkpoint_key: torch.zeros(1)}, tmp_path / "model.safetensors")
    assert _checkpoint_base(tmp_path / "model.safetensors").name == kind


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda p: p.mkdir(), FormatError),
        (lambda p: p.write_bytes(b"junk"), FormatError),
        (lambda p: p.write_bytes(b""), FormatError),
        (lambda p: None, ResourceError),
    ],
)
def test_what_is_no_model_is_refused(make: object, error: type[LoracompError], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    make(path)  # type: ignore[operator]
    with pytest.raises(error, match=r"model\.safetensors"):
        open_base(str(path))


def test_a_folder_of_pickles_is_refused(tmp_path: Path) -> None:
    from tiny import tiny_pipeline

    tiny_pipeline("sd15").save_pretrained(tmp_path / "old", safe_serialization=False)
    with pytest.raises(LoracompError, match="old"):
        open_base(str(tmp_path / "old"))
