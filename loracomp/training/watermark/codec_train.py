"""Training of a codec: grey pictures and a strong mark first, then real ones, then all distortions.

The strength is led by what can be seen: it follows the PSNR that is wanted at each moment, which ends at the
final one. Time-limited and restartable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.training.glyph.clock import (
    Average,
    Budget,
    Log,
    learning_rate,
    save_atomic,
    set_learning_rate,
)
from loracomp.training.watermark.codec_loss import Found, Latents, Weights, codec_loss
from loracomp.training.watermark.material import Material
from loracomp.watermark.codec import Codec
from loracomp.watermark.distortions import MILD, SHARES
from loracomp.watermark.networks import Shape

GREY, REAL, STRONG = 0.06, 0.3, 0.75
"""Shares of the time at which real pictures begin, distortions begin, and the final strength is reached."""
SMOOTH = 0.02


@dataclass(frozen=True)
class CodecRun:
    """How a codec is trained.

    Attributes:
        shape: Sizes.
        base: Base model.
        minutes: Time limit.
        batch: Pictures in a step.
        rate: Peak learning rate.
        begin_psnr: PSNR in dB that the mark begins with.
        psnr: PSNR that it ends with.
        half: Whether to compute in bf16.
        steps: Steps at most; None for the clock alone.
    """

    shape: Shape
    base: str = "glyph"
    minutes: float = 12.0
    batch: int = 64
    rate: float = 1e-3
    begin_psnr: float = 24.0
    psnr: float = 35.0
    half: bool = False
    steps: int | None = None


@dataclass
class State:
    """What changes during a run."""

    codec: Codec
    average: Average
    optimizer: torch.optim.Optimizer
    amplitude: float = 0.4
    psnr: float = 30.0
    accuracy: float = 0.5
    step: int = 0
    source: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(5))


class Both(nn.Module):
    """Encoder and extractor under one roof, for the average."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.encoder, self.extractor = codec.encoder, codec.extractor


def train_codec(
    run: CodecRun, vae: Any, load: Callable[[], Material], work: Path, device: str = "cpu"
) -> Codec:
    """Trains for the run's minutes; goes on from ``work/codec.pt`` where there is one.

    The result reads a mark of strength 1 as a projection of 1.

    Args:
        run: What to do.
        vae: The base's autoencoder; frozen.
        load: Gives the pictures, after what has to be compiled is compiled.
        work: Checkpoint and log.
        device: Where to train.
    """
    torch.manual_seed(17)
    codec = Codec.fresh(run.shape, run.base)
    both = Both(codec).to(device).train()
    latents = Latents(vae.to(device))
    parameters = list(both.parameters())
    optimizer = torch.optim.AdamW(parameters, run.rate, weight_decay=1e-4, fused=device.startswith("cuda"))
    begin = 0.06 if codec.pooled else 0.4
    state = State(codec, Average(both, 0.999), optimizer, begin)
    spent = _resume(work / "codec.pt", both, state)
    material = load()
    budget, log = Budget(run.minutes, spent), Log(work / "codec.json", {"run": asdict(run)})
    last = budget.spent
    while (fraction := budget.passed(state.step, run.steps)) < 1:
        found = _step(run, state, latents, _pictures(run, material, fraction, device), fraction, device)
        state.average.update(both.parameters(), state.step)
        state.step += 1
        if budget.spent - last > 20:
            last = budget.spent
            log.add(seconds=last, **_figures(state, found))
            _save(work / "codec.pt", both, state, last)
    state.average.copy_to(both)
    log.add(finished=True, **_figures(state, found) if state.step else {})
    _save(work / "codec.pt", both, state, budget.spent)
    return finished(run, state, latents, material)


def wanted_psnr(run: CodecRun, fraction: float) -> float:
    """PSNR in dB that the mark is led to: from the first to the last on a cosine."""
    passed = min(1.0, max(0.0, (fraction - GREY) / (STRONG - GREY)))
    share = 0.5 - 0.5 * math.cos(math.pi * passed)
    return run.begin_psnr + (run.psnr - run.begin_psnr) * share


def weights_at(run: CodecRun, fraction: float) -> Weights:
    """No hiding until real pictures are read; all of it once the strength is final."""
    grown = min(1.0, max(0.0, (fraction - REAL) / (STRONG - REAL)))
    zero = 0.25 if run.shape.carriers == "zero" else 0.0
    return Weights(
        visible=0.05 * grown,
        peak=0.01 * grown,
        null=0.01 if run.shape.carriers == "keyed" else 0.0,
        zero=zero,
    )


def _pictures(run: CodecRun, material: Material, fraction: float, device: str) -> Tensor:
    if fraction >= GREY or run.shape.carriers == "pooled":  # filters write nothing on grey
        return material.batch(run.batch)
    level = 0.2 + 0.6 * torch.rand(run.batch, 1, 1, 1, device=device)
    return level.expand(-1, 3, run.shape.pixels, run.shape.pixels).contiguous()


def _step(
    run: CodecRun, state: State, latents: Latents, pictures: Tensor, fraction: float, device: str
) -> Found:
    set_learning_rate(state.optimizer, learning_rate(run.rate, state.step, fraction, hold=0.3))
    wanted = wanted_psnr(run, fraction)
    shares = SHARES if fraction >= REAL else MILD if fraction >= GREY else (("identity", 1.0),)
    kind = device.partition(":")[0]
    with torch.autocast(kind, torch.bfloat16, enabled=run.half):
        found = codec_loss(
            state.codec,
            latents,
            pictures,
            state.amplitude,
            wanted,
            shares,
            weights_at(run, fraction),
            state.source,
        )
    found.loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in state.optimizer.param_groups for p in g["params"]], 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    _lead(state, found, wanted)
    return found


def _lead(state: State, found: Found, wanted: float) -> None:
    """Moves the amplitude towards the wanted PSNR, slowly, from smoothed figures."""
    keep = SMOOTH if state.step > 20 else 0.3
    state.psnr += keep * (float(found.psnr) - state.psnr)
    state.accuracy += keep * (float(found.accuracy) - state.accuracy)
    state.amplitude *= 10 ** (SMOOTH * (state.psnr - wanted) / 20)


@torch.no_grad()
def finished(run: CodecRun, state: State, latents: Latents, material: Material) -> Codec:
    """The codec at its final strength, the extractor scaled so that a mark of strength 1 reads 1."""
    codec = state.codec
    made = Codec(run.shape, codec.encoder.eval(), codec.extractor.eval(), run.base, state.amplitude)
    if made.keyed:
        found = [
            codec_loss(
                made, latents, material.batch(run.batch), made.amplitude, run.psnr, (("identity", 1.0),),
                Weights(0, 0, 0), state.source,
            ).projection
            for _ in range(4)
        ]  # fmt: skip
        size = float(torch.stack(found).mean())
        scale = made.extractor.scale
        if isinstance(scale, Tensor) and size > 1e-4:
            scale -= math.log(size)
    return made


def _figures(state: State, found: Found) -> dict[str, Any]:
    return {
        "step": state.step,
        "loss": float(found.loss.detach()),
        "accuracy": state.accuracy,
        "psnr": state.psnr,
        "amplitude": state.amplitude,
    }


def _save(path: Path, both: Both, state: State, spent: float) -> None:
    save_atomic(
        path,
        {
            "model": both.state_dict(),
            "average": state.average.values,
            "optimizer": state.optimizer.state_dict(),
            "figures": (state.amplitude, state.psnr, state.accuracy, state.step),
            "source": state.source.get_state(),
            "spent": spent,
        },
    )


def _resume(path: Path, both: Both, state: State) -> float:
    if not path.exists():
        return 0.0
    saved: dict[str, Any] = torch.load(path, map_location=state.average.values[0].device, weights_only=True)
    both.load_state_dict(saved["model"])
    state.average.values = saved["average"]
    state.optimizer.load_state_dict(saved["optimizer"])
    state.amplitude, state.psnr, state.accuracy, state.step = saved["figures"]
    state.source.set_state(saved["source"].cpu())
    return float(saved["spent"])
