"""The codec: its parts' laws, its training at a tiny size, its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import markworlds as worlds
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from loracomp.errors import FormatError, ResourceError, TrainingError
from loracomp.training.glyph.packages import BASE_STYLES
from loracomp.training.glyph.splits import unseen_subjects
from loracomp.training.glyph.subjects import Icon
from loracomp.training.watermark import quality
from loracomp.training.watermark.codec_train import CodecRun, train_codec, wanted_psnr, weights_at
from loracomp.training.watermark.material import Folder, codec_may_see, write_manifest
from loracomp.watermark import distortions
from loracomp.watermark.codec import LARGEST, SHIPPED, Codec, load_codec, shipped_codec
from loracomp.watermark.networks import Shape, cosine_bands

SMALL = Shape(4, 16, 32, 8, widths=(16, 16), blocks=(1, 1), bits=8)
GLYPH = Shape(12, 16, 128, 80)


class Flat:
    """Pictures of one color each."""

    def batch(self, count: int) -> torch.Tensor:
        return torch.rand(count, 3, 1, 1).expand(-1, -1, 32, 32).contiguous()


def picture(size: int = 64) -> torch.Tensor:
    at = torch.linspace(0, 6, size)
    rows = [(at[:, None] * (k + 1) + at * (2 - k)).sin() * 0.3 + 0.5 for k in range(3)]
    return torch.stack(rows)[None]


def test_bands_are_orthonormal_and_have_no_mean() -> None:
    bands = cosine_bands(16, 80)
    flat = bands.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(80), atol=1e-5, rtol=0)
    assert float(bands.sum((1, 2)).abs().max()) < 1e-4
    with pytest.raises(ValueError, match="do not fit"):
        cosine_bands(4, 16)


def test_residuals_are_linear_and_of_known_size() -> None:
    codec = Codec.fresh(GLYPH, "glyph", 0.2)
    with torch.no_grad():
        codec.encoder.gains.normal_()  # type: ignore[operator]
        codec.encoder.mix.normal_()  # type: ignore[operator]
    codes = torch.nn.functional.normalize(
        torch.randn(400, GLYPH.dimensions, generator=worlds.source(0)), dim=1
    )
    codec.to("cpu")
    made = codec.residuals(codes)
    assert float(made.square().mean().sqrt()) == pytest.approx(0.2, rel=0.05)
    torch.testing.assert_close(codec.residuals(codes[:1] * 2 - codes[1:2]), 2 * made[:1] - made[1:2])


def test_a_picture_is_read_the_same_in_any_company() -> None:
    codec = Codec.fresh(SMALL, "tiny").to("cpu")
    pictures = torch.rand(5, 3, 32, 32, generator=worlds.source(1))
    torch.testing.assert_close(codec.read(pictures)[:1], codec.read(pictures[:1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quality_", [20, 50, 90])
def test_jpeg_is_libjpegs(quality_: int, tmp_path: Path) -> None:
    x = (picture() * 255).round() / 255
    image = Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy())
    image.save(tmp_path / "x.jpg", quality=quality_)
    real = torch.from_numpy(np.array(Image.open(tmp_path / "x.jpg"))).permute(2, 0, 1)[None] / 255
    made = distortions.jpeg(x, torch.tensor([float(quality_)]))
    assert float(quality.psnr(made, real)) > 38
    assert float(quality.psnr(made, real)) > float(quality.psnr(x, real)) + 3


@pytest.mark.parametrize("name", sorted(distortions.DISTORTIONS))
def test_distortions_keep_size_and_range_and_pass_gradients(name: str) -> None:
    x = picture(40).repeat(2, 1, 1, 1).requires_grad_()
    out = distortions.DISTORTIONS[name](x, worlds.source(3))
    assert out.shape == x.shape
    assert -0.02 <= float(out.detach().min()) <= float(out.detach().max()) <= 1.02
    (out * torch.rand(out.shape, generator=worlds.source(4))).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    again = distortions.DISTORTIONS[name](x, worlds.source(3))
    assert torch.equal(out, again)


def test_what_can_be_seen() -> None:
    clean = torch.full((1, 3, 32, 32), 0.5)
    noisy = (clean + 0.3 * torch.rand(clean.shape, generator=worlds.source(5))).clamp(0, 1)
    assert float(quality.visible(clean + 0.05, clean)) > 1.2 * float(quality.visible(noisy + 0.05, noisy))
    spot = clean.clone()
    spot[..., 4:6, 4:6] += 0.4
    assert float(quality.peak(spot, clean)) > 5 * float((spot - clean).abs().mean())
    assert float(quality.psnr(clean + 0.1, clean)) == pytest.approx(20, abs=1e-3)


def test_the_schedule_ends_hidden() -> None:
    run = CodecRun(SMALL)
    levels = [wanted_psnr(run, f / 20) for f in range(21)]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (run.begin_psnr, run.psnr)
    assert weights_at(run, 0.1).visible == 0 < weights_at(run, 1).visible


@pytest.mark.parametrize("carriers", ["keyed", "fixed", "zero", "pooled"])
def test_training_ends_and_goes_on(carriers: str, tmp_path: Path) -> None:
    vae: Any = tiny_pipeline("sd15").vae
    shape = Shape(4, 16, 32, 8, widths=(8, 8), blocks=(1, 1), bits=8, carriers=carriers)
    run = CodecRun(shape, "tiny", minutes=5, batch=4, steps=6)
    codec = train_codec(run, vae, Flat, tmp_path)
    log = json.loads((tmp_path / "codec.json").read_text())["log"]
    assert log[-1]["step"] == 6
    longer = train_codec(CodecRun(shape, "tiny", minutes=5, batch=4, steps=8), vae, Flat, tmp_path)
    assert json.loads((tmp_path / "codec.json").read_text())["log"][-1]["step"] == 8
    assert longer.digest != codec.digest
    assert codec.read(torch.rand(2, 3, 32, 32)).isfinite().all()


def test_training_learns_to_read(tmp_path: Path) -> None:
    """A random but fixed decoder, flat pictures, a strong mark: bits are read far above chance."""
    torch.manual_seed(3)
    vae: Any = tiny_pipeline("sd15").vae
    run = CodecRun(SMALL, "tiny", minutes=5, batch=8, steps=30, rate=4e-3, begin_psnr=6, psnr=6)
    codec = train_codec(run, vae, Flat, tmp_path)
    assert json.loads((tmp_path / "codec.json").read_text())["log"][-1]["accuracy"] > 0.62
    assert codec.amplitude > 0


def test_files_tell_the_same(tmp_path: Path) -> None:
    codec = Codec.fresh(SMALL, "tiny", 0.3).to("cpu")
    path = codec.save(tmp_path / "deep" / "codec.safetensors")
    again = load_codec(path)
    assert (again.digest, again.shape, again.base, again.amplitude) == (codec.digest, SMALL, "tiny", 0.3)
    torch.testing.assert_close(
        again.residual(worlds.key()), codec.residual(worlds.key()), atol=2e-3, rtol=1e-2
    )
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FormatError, match="no codec"):
        load_codec(path)
    with pytest.raises(ResourceError, match="watermark codec"):
        load_codec(tmp_path / "none.safetensors")
    with pytest.raises(ResourceError, match="no codec ships for sdxl"):
        shipped_codec("sdxl")


def test_the_full_size_fits_into_the_package(tmp_path: Path) -> None:
    assert Codec.fresh(GLYPH, "glyph").save(tmp_path / "c.safetensors").stat().st_size < LARGEST
    for path in SHIPPED.glob("*.safetensors"):
        assert path.stat().st_size < LARGEST


def leaks(cells: dict[str, list[str]]) -> bool:
    return bool(set(cells) - set(BASE_STYLES)) or any(set(s) & unseen_subjects() for s in cells.values())


def test_the_codec_sees_nothing_that_is_measured_with(tmp_path: Path) -> None:
    styles = (*BASE_STYLES, "fluent", "mono", "blobs", "pixel", "halftone")
    icons = [Icon(subject, style, "") for style in styles for subject in (*sorted(unseen_subjects()), "cat")]
    assert {(i.subject, i.style) for i in icons if codec_may_see(i)} == {("cat", s) for s in BASE_STYLES}
    write_manifest(icons, tmp_path / "manifest.json")
    assert not leaks(json.loads((tmp_path / "manifest.json").read_text())["codec"])
    assert leaks({"mono": ["cat"]})
    assert leaks({"noto": [next(iter(unseen_subjects()))]})
    shipped = SHIPPED / "manifest.json"
    assert shipped.is_file() == (SHIPPED / "glyph.safetensors").is_file()
    if shipped.is_file():
        assert not leaks(json.loads(shipped.read_text())["codec"])


def test_folders_of_ones_own(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (40, 50), (10 * number, 5, 200)).save(tmp_path / f"{number}.png")
    found = Folder.read(tmp_path, 32, "cpu").batch(5)
    assert found.shape == (5, 3, 32, 32)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    with pytest.raises(TrainingError, match="a codec needs 8"):
        Folder.read(tmp_path / "none", 32, "cpu")
