"""Training of the autoencoder on icons of every style, filters and pairs included."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loracomp.training.glyph.augment import palette, shuffle_channels, side_by_side
from loracomp.training.glyph.clock import Average, Budget, Log, learning_rate, save_atomic, set_learning_rate
from loracomp.training.glyph.filters import FILTERS, over
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.splits import NAMED_STYLES, vae_held_out, vae_may_see
from loracomp.training.glyph.vae import VaeConfig, VaeLoss, build_vae, encode, psnr, whiten

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class VaeRun:
    """How the autoencoder is trained."""

    minutes: float = 6.0
    batch: int = 128
    rate: float = 1e-3
    compile: bool = True
    steps: int | None = None
    model: VaeConfig = field(default_factory=VaeConfig)


def vae_batch(pictures: Pictures, allowed: Tensor, batch: int) -> Tensor:
    """(B, 3, 128, 128) in [-1, 1]: an eighth pairs, an eighth filtered, random backgrounds."""
    device = pictures.pixels.device
    rgba = pictures.draw(allowed[torch.randint(len(allowed), (batch,), device=device)])
    eighth = max(1, batch // 8)
    rgba[:eighth] = side_by_side(rgba[:eighth], rgba[:eighth].roll(1, 0))
    flip = torch.rand(batch, 1, 1, 1, device=device) < 0.5
    rgba = torch.where(flip, rgba.flip(3), rgba)
    back = _backgrounds(batch, device)
    rgb = shuffle_channels(over(rgba, back), 0.15)
    names = list(FILTERS)
    chosen = FILTERS[names[int(torch.randint(len(names), ()))]]
    rgb[-eighth:] = chosen(rgba[-eighth:], back[-eighth:])
    return rgb.clamp(0, 1) * 2 - 1


def _backgrounds(batch: int, device: torch.device) -> Tensor:
    """(B, 3): 40 % white, else a named color, slightly off."""
    colors = palette(device)
    back = colors[torch.randint(len(colors), (batch,), device=device)]
    back = (back + 0.03 * torch.randn(batch, 3, device=device)).clamp(0, 1)
    white = torch.rand(batch, 1, device=device) < 0.4
    return torch.where(white, torch.ones_like(back), back)


def train_vae(run: VaeRun, load: Callable[[], Pictures], out: Path, device: str) -> Path:
    """Train for the run's minutes and write ``out/vae.safetensors``; resumes from ``vae.pt``."""
    torch.manual_seed(11)
    vae = build_vae(run.model).to(device, memory_format=torch.channels_last)
    loss = VaeLoss(vae)
    average = Average(vae, 0.998)
    optimizer = torch.optim.AdamW(
        vae.parameters(), run.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=run.compile
    )
    step, spent = _resume(out / "vae.pt", vae, average)
    compiled = torch.compile(loss) if run.compile else loss
    _warm_up(compiled, run, device)
    pictures = load()
    allowed = pictures.where([vae_may_see(icon) for icon in pictures.icons])
    budget = Budget(run.minutes, spent)
    log = Log(out / "vae.json", {"run": asdict(run)})
    last = budget.spent
    while (fraction := budget.passed(step, run.steps)) < 1:
        set_learning_rate(optimizer, learning_rate(run.rate, step, fraction, hold=0.25))
        square = _step(compiled, vae_batch(pictures, allowed, run.batch), optimizer, run, vae)
        average.update(vae.parameters(), step)
        step += 1
        if budget.spent - last > 20:
            last = budget.spent
            log.add(step=step, seconds=last, train_db=float(-10 * torch.log10(square)))
            state = {"vae": vae.state_dict(), "average": average.values}
            save_atomic(out / "vae.pt", state | {"step": step, "spent": budget.spent})
    average.copy_to(vae)
    return _finish(vae, pictures, allowed, log, step, out)


def _resume(path: Path, vae: AutoencoderKL, average: Average) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    saved: dict[str, Any] = torch.load(path, map_location=average.values[0].device)
    vae.load_state_dict(saved["vae"])
    average.values = saved["average"]
    return int(saved["step"]), float(saved["spent"])


def _noise(pictures: Tensor, run: VaeRun) -> Tensor:
    side = pictures.shape[-1] // 2 ** (len(run.model.widths) - 1)
    return torch.randn(len(pictures), run.model.latents, side, side, device=pictures.device)


def _warm_up(loss: Any, run: VaeRun, device: str) -> None:
    """Compile before the clock starts."""
    if not run.compile:
        return
    began = time.monotonic()
    size = run.model.size
    fake = torch.rand(run.batch, 3, size, size, device=device)
    fake = fake.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16):
        loss(fake, _noise(fake, run))[0].backward()
    print(f"[vae] compiled in {time.monotonic() - began:.0f} s", flush=True)


def _step(
    loss: Any, pictures: Tensor, optimizer: torch.optim.Optimizer, run: VaeRun, vae: AutoencoderKL
) -> Tensor:
    """One update; the mean squared error on the [0, 1] scale."""
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=run.compile):
        total, square = loss(pictures, _noise(pictures, run))
    total.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return square.detach()


@torch.no_grad()
def _finish(vae: AutoencoderKL, pictures: Pictures, allowed: Tensor, log: Log, step: int, out: Path) -> Path:
    """Whiten on training icons, measure on held-out subjects, write the weights."""
    parts = []
    for _ in range(24 if len(allowed) > 1000 else 2):
        parts.append(encode(vae, vae_batch(pictures, allowed, min(256, len(allowed)))).float())
    latents = torch.cat(parts)
    whiten(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    by_style = held_out_psnr(vae, pictures)
    log.add(step=step, held_out_db=by_style.pop("all"), by_style=by_style)
    path = out / "vae.safetensors"
    state = {k: v.float().contiguous().cpu() for k, v in vae.state_dict().items()}
    save_file(state, out / "vae.part")
    (out / "vae.part").rename(path)
    return path


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKL, pictures: Pictures) -> dict[str, Any]:
    """Mean PSNR in dB on held-out subjects' icons on white: over all, pooled, and by style."""
    keep = [i.subject in vae_held_out() and i.style in NAMED_STYLES for i in pictures.icons]
    index = pictures.where(keep)
    white = torch.ones(len(index), 3, device=pictures.pixels.device)
    values = psnr(vae, over(pictures.standard(index), white) * 2 - 1)
    styles = [icon.style for icon, kept in zip(pictures.icons, keep, strict=True) if kept]
    found: dict[str, Any] = {"all": float(values.mean()), "icons": len(values)}
    found["pooled"] = float(-10 * torch.log10((10 ** (-values / 10)).mean()))
    for style in sorted(set(styles)):
        mask = torch.tensor([s == style for s in styles], device=values.device)
        found[style] = float(values[mask].mean())
    return found
