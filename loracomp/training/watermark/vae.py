"""Training of a mark in a decoder: only low-rank factors of its last stage learn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.errors import UsageError
from loracomp.lowrank import LowRank
from loracomp.training.glyph.clock import Budget, Log, save_atomic
from loracomp.training.order import generator_for
from loracomp.training.watermark.balance import Balance
from loracomp.training.watermark.codec_loss import Latents
from loracomp.training.watermark.material import Material
from loracomp.training.watermark.quality import psnr, visible
from loracomp.watermark.codec import Codec
from loracomp.watermark.distortions import SHARES, distorted
from loracomp.watermark.keys import Key
from loracomp.watermark.vaemark import VaeMark, last_stage


@dataclass(frozen=True)
class VaeRun:
    """How a decoder is marked.

    Attributes:
        rank: Rank of the updates.
        alpha: Network alpha.
        minutes: Time limit.
        steps: Steps at most; None for the clock alone.
        batch: Pictures in a step.
        lr: Learning rate.
        enough: Bit accuracy on a running mean at which, with the wanted PSNR, it ends.
        psnr: PSNR in dB against the unmarked decoder, at which it ends.
        seed: Decides the factors to begin with and the distortions.
    """

    rank: int = 4
    alpha: float = 32.0
    minutes: float = 3.0
    steps: int | None = None
    batch: int = 16
    lr: float = 5e-4
    enough: float = 0.995
    psnr: float = 32.0
    seed: int = 0


class Factors(nn.Module):
    """Trainable low-rank factors of convolutions; ups begin at zero."""

    def __init__(self, convolutions: dict[str, nn.Conv2d], run: VaeRun) -> None:
        super().__init__()
        self.paths, self.scale, self.alpha = list(convolutions), run.alpha / run.rank, run.alpha
        self.downs, self.ups = nn.ParameterList(), nn.ParameterList()
        for path, layer in convolutions.items():
            shape = (run.rank, *layer.weight.shape[1:])
            bound = layer.weight[0].numel() ** -0.5
            drawn = torch.rand(shape, generator=generator_for(run.seed, "vae", path))
            self.downs.append(nn.Parameter((2 * drawn - 1) * bound))
            self.ups.append(nn.Parameter(torch.zeros(layer.weight.shape[0], run.rank, 1, 1)))

    @contextmanager
    def live(self, convolutions: dict[str, nn.Conv2d]) -> Any:
        """The updates on the convolutions, for as long as the context lasts."""
        handles = [
            layer.register_forward_hook(self._hook(index))
            for index, layer in enumerate(convolutions.values())
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, index: int) -> Any:
        def hook(layer: nn.Conv2d, inputs: Any, out: Tensor) -> Tensor:
            inner = F.conv2d(inputs[0], self.downs[index].to(out), stride=layer.stride, padding=layer.padding)
            return out + self.scale * F.conv2d(inner, self.ups[index].to(out))

        return hook

    def updates(self) -> dict[str, LowRank]:
        """Copies on the CPU."""
        rows = zip(self.paths, self.downs, self.ups, strict=True)
        return {
            p: LowRank(d.detach().cpu().clone(), u.detach().cpu().clone(), self.alpha) for p, d, u in rows
        }


def mark_vae(
    run: VaeRun,
    vae: Any,
    codec: Codec,
    key: Key,
    material: Material,
    work: Path,
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> tuple[VaeMark, dict[str, float]]:
    """Marks a decoder; goes on from ``work/vae_mark.pt`` where there is one.

    Args:
        run: What to do.
        vae: The autoencoder; it stays as it is.
        codec: A pooled one: what convolutions write is the same everywhere.
        key: The key.
        material: Pictures to decode.
        work: Checkpoint and log.
        device: Where to train.
        stop: Asked after every step.

    Returns:
        The mark, and the figures of the last steps: steps, seconds, accuracy, psnr.

    Raises:
        UsageError: The codec is not pooled, or of another length than the key.
    """
    if not codec.pooled:
        raise UsageError(f"a VAE's mark needs a codec with pooled carriers, not {codec.shape.carriers}")
    if codec.shape.bits != key.bits:
        raise UsageError(f"a key of {key.bits} bits, a codec of {codec.shape.bits}; issue a key with --bits")
    latents, convolutions = Latents(vae.to(device)), last_stage(vae)
    codec.to(device)
    factors, balance = Factors(convolutions, run).to(device), Balance()
    optimizer = torch.optim.AdamW(factors.parameters(), run.lr, weight_decay=0.0)
    saved = work / "vae_mark.pt"
    step, spent = _resume(saved, factors, optimizer, balance, key)
    budget, log = Budget(run.minutes, spent), Log(work / "vae_mark.json", {"run": asdict(run)})
    signs, told = (2.0 * key.message - 1).to(device), budget.spent
    while budget.passed(step, run.steps) < 1 and not _done(balance, run):
        _step(run, factors, convolutions, latents, codec, material, signs, balance, optimizer, step)
        step += 1
        stopping = stop()
        if stopping or budget.spent - told > 10:
            told = budget.spent
            log.add(step=step, seconds=told, accuracy=balance.mean_accuracy, psnr=balance.mean_psnr)
            _save(saved, factors, optimizer, balance, step, told, key)
        if stopping:
            break
    figures = {
        "steps": step, "seconds": budget.spent, "accuracy": balance.mean_accuracy or 0.0,
        "psnr": balance.mean_psnr or 0.0,
    }  # fmt: skip
    log.add(finished=True, **figures)
    return VaeMark(factors.updates(), codec.base, key.commitment, codec.digest), figures


def _done(balance: Balance, run: VaeRun) -> bool:
    return (balance.mean_accuracy or 0) >= run.enough and (balance.mean_psnr or 0) >= run.psnr


def _step(
    run: VaeRun, factors: Factors, convolutions: dict[str, nn.Conv2d], latents: Latents, codec: Codec,
    material: Material, signs: Tensor, balance: Balance, optimizer: torch.optim.Optimizer, step: int,
) -> None:  # fmt: skip
    pictures = material.batch(run.batch)
    with torch.no_grad():
        z = latents.encode(pictures)
        clean = latents.decode(z)
    with factors.live(convolutions):
        made = latents.decode(z)
    source = generator_for(run.seed, "vae", step)
    logits = codec.extractor(torch.cat([made.clamp(0, 1), distorted(made, SHARES, source)]))
    plain = logits[: len(made)].detach()
    accuracy = float(((plain * signs) > 0).float().mean())
    quality = float(psnr(made.detach().clamp(0, 1), clean.clamp(0, 1)).mean())
    picture, mark = balance.step(quality, accuracy)
    loss = (
        picture * visible(made, clean) / 10 ** (-balance.psnr / 10)
        + mark * F.softplus(-logits * signs).mean()
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(factors.parameters()), 1.0)
    optimizer.step()


def _save(
    path: Path, factors: Factors, optimizer: Any, balance: Balance, step: int, spent: float, key: Key
) -> None:
    state = {"factors": factors.state_dict(), "optimizer": optimizer.state_dict(), "balance": asdict(balance)}
    save_atomic(path, state | {"step": step, "spent": spent, "commitment": key.commitment})


def _resume(path: Path, factors: Factors, optimizer: Any, balance: Balance, key: Key) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if saved["commitment"] != key.commitment:
        raise UsageError(f"{path}: begun with another key; remove it, or choose another --work")
    factors.load_state_dict(saved["factors"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["balance"].items():
        setattr(balance, name, value)
    return int(saved["step"]), float(saved["spent"])
