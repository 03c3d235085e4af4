"""Marks in decoders: the scheduler's two mended defects, the layers, training, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import markworlds as worlds
import pytest
import torch
from tiny import tiny_pipeline

from loracomp.errors import BaseMismatchError, FormatError, ResourceError, UsageError
from loracomp.training.watermark.balance import HIGHEST_ACCURACY, Balance
from loracomp.training.watermark.codec_loss import Latents
from loracomp.training.watermark.vae import VaeRun, mark_vae
from loracomp.watermark.codec import Codec
from loracomp.watermark.networks import Shape
from loracomp.watermark.vaemark import last_stage, load_vae_mark, marked

KEY = worlds.key(bits=8)


class Noise:
    def batch(self, count: int) -> torch.Tensor:
        return torch.rand(count, 3, 32, 32)


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny_pipeline("sd15").vae


def codec(carriers: str = "pooled", bits: int = 8) -> Codec:
    torch.manual_seed(0)
    return Codec.fresh(Shape(4, 16, 32, 8, (8, 8), (1, 1), bits, carriers), "tiny").to("cpu")


def test_the_wanted_accuracy_can_be_reached() -> None:
    """As published it becomes 1.06, and from then on the mark's weight grows in every step."""
    balance = Balance()
    for _ in range(200):
        balance.step(45.0, 1.0)
    assert balance.accuracy == HIGHEST_ACCURACY < 1
    assert balance.mark < 0.5
    assert balance.psnr == balance.highest_psnr


def test_weights_keep_their_sum_and_answer() -> None:
    balance = Balance()
    for _ in range(30):
        assert sum(balance.step(35.0, 0.5)) == pytest.approx(1)
    assert balance.mark > 0.9
    for _ in range(60):
        balance.step(20.0, 1.0)
    assert balance.picture > 0.9


def test_single_batches_decide_nothing() -> None:
    balance = Balance()
    for _ in range(3):
        balance.step(35.0, 0.97)
    balance.step(35.0, 0.75)
    assert balance.mark == 0
    balance.step(35.0, 0.75)
    assert balance.mark > 0


def test_the_last_stage_is_the_full_resolution_one(vae: Any) -> None:
    found = last_stage(vae)
    assert len(found) == 6 // 3 * 2
    assert all(path.startswith("decoder.up_blocks.1.resnets") for path in found)
    sd15 = {4 * (c_in * 9 + c_out) for c_in, c_out in ((256, 128), (128, 128))}
    assert sum(sd15) + 4 * 4 * (128 * 9 + 128) == 35_328  # EW-LoRA's table 7: 0.0353 M


def test_marking_ends_goes_on_and_leaves_the_decoder_alone(vae: Any, tmp_path: Path) -> None:
    z = torch.randn(2, 4, 16, 16, generator=worlds.source(0))
    with torch.no_grad():
        before = vae.decode(z).sample
    run = VaeRun(steps=4, batch=2, minutes=5, lr=1e-2)
    calls = iter(range(99))
    mark_vae(run, vae, codec(), KEY, Noise(), tmp_path, stop=lambda: next(calls) >= 1)
    mark, figures = mark_vae(run, vae, codec(), KEY, Noise(), tmp_path)
    assert figures["steps"] == 4
    with torch.no_grad():
        assert torch.equal(vae.decode(z).sample, before)
        with marked(vae, mark):
            changed = vae.decode(z).sample
        assert torch.equal(vae.decode(z).sample, before)
    assert float((changed - before).abs().max()) > 1e-4
    path = mark.save(tmp_path / "mark.safetensors")
    again = load_vae_mark(path)
    with torch.no_grad(), marked(vae, again):
        torch.testing.assert_close(vae.decode(z).sample, changed, atol=1e-4, rtol=1e-4)
    raw = path.read_bytes().decode("latin-1")
    assert KEY.commitment in raw
    assert not [secret for secret in KEY.spellings()[:-1] if secret in raw]
    with pytest.raises(UsageError, match="begun with another key"):
        mark_vae(run, vae, codec(), worlds.key("other", bits=8), Noise(), tmp_path)


class Textures(torch.nn.Module):
    """Reads how strong eight textures are, against what unmarked pictures have."""

    def __init__(self) -> None:
        super().__init__()
        kernels = torch.randn(8, 3, 3, 3, generator=worlds.source(9))
        self.kernels = kernels - kernels.mean((1, 2, 3), keepdim=True)
        self.usual = torch.zeros(8)
        self.factor = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.conv2d(pictures, self.kernels).square().mean((2, 3))
        return self.factor * (found.add(1e-6).log() - self.usual)


def test_a_decoder_learns_what_the_extractor_reads(vae: Any, tmp_path: Path) -> None:
    torch.manual_seed(4)
    z = Latents(vae).encode(Noise().batch(8))
    start, reader = codec(), Textures()
    marks = Codec(start.shape, start.encoder, reader, "tiny", 1.0)  # type: ignore[arg-type]
    with torch.no_grad():
        reader.usual = (reader(vae.decode(z).sample.clamp(-1, 1) / 2 + 0.5) / 20).mean(0)
    signs = 2.0 * KEY.message - 1

    def accuracy() -> float:
        with torch.no_grad():
            read = marks.read(vae.decode(z).sample.clamp(-1, 1) / 2 + 0.5)
        return float((read * signs > 0).float().mean())

    before = accuracy()
    assert before < 0.7
    mark, _ = mark_vae(VaeRun(steps=30, batch=4, minutes=5, lr=3e-3), vae, marks, KEY, Noise(), tmp_path)
    with marked(vae, mark):
        assert accuracy() > before + 0.15


def test_mistakes(vae: Any, tmp_path: Path) -> None:
    for wrong, message in ((codec("keyed"), "pooled carriers"), (codec(bits=16), "a key of 8 bits")):
        with pytest.raises(UsageError, match=message):
            mark_vae(VaeRun(steps=1), vae, wrong, KEY, Noise(), tmp_path)
    with pytest.raises(ResourceError, match="watermark vae"):
        load_vae_mark(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(FormatError, match="no mark of a VAE"):
        load_vae_mark(tmp_path / "x.safetensors")
    mark, _ = mark_vae(VaeRun(steps=1, batch=2), vae, codec(), KEY, Noise(), tmp_path)
    other = tiny_pipeline("flux").vae
    other.decoder.up_blocks[1].resnets[0].conv1 = torch.nn.Conv2d(3, 3, 3)
    with pytest.raises(BaseMismatchError, match="no such layer"), marked(other, mark):
        pass
