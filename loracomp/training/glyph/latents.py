"""The denoiser's training set: augmented latents of every allowed icon, with tokenized captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from loracomp.training.glyph.augment import palette, side_by_side, tint
from loracomp.training.glyph.captions import Shown, can_tint, caption
from loracomp.training.glyph.clock import save_atomic, wait_for
from loracomp.training.glyph.filters import over
from loracomp.training.glyph.packages import ART_SETS
from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.splits import denoiser_may_see
from loracomp.training.glyph.vae import VaeConfig, build_vae, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PHRASES = {art.style: art.phrase for art in ART_SETS}
SHARE_TINTED = 0.08
SHARE_PAIRED = 0.10


@dataclass(frozen=True)
class Plan:
    """Which pictures to make: one entry per latent. ``tint`` and ``other`` are -1 where absent."""

    icon: NDArray[np.int64]
    color: NDArray[np.int64]
    tint: NDArray[np.int64]
    other: NDArray[np.int64]


def draw_plan(pictures: Pictures, per_icon: int, seed: int = 3) -> Plan:
    """``per_icon`` pictures of each allowed icon: 60 % on white, some tinted, some in pairs."""
    rng = np.random.default_rng(seed)
    allowed = np.asarray([i for i, icon in enumerate(pictures.icons) if denoiser_may_see(icon)])
    icon = np.repeat(allowed, per_icon)
    count = len(icon)
    color = np.where(rng.random(count) < 0.5, 0, rng.integers(1, len(COLOR_NAMES), count))
    kind = rng.random(count)
    tintable = np.asarray([can_tint(pictures.subjects[i.subject]) for i in pictures.icons])
    tinted = (kind < SHARE_TINTED) & tintable[icon]
    shade = rng.integers(1, len(COLOR_NAMES), count)
    tint_color = np.where(tinted & (shade != color), shade, -1)
    paired = kind > 1 - SHARE_PAIRED
    other = np.where(paired, _partners(pictures, allowed, icon, rng), -1)
    return Plan(icon, color, tint_color, other)


def _partners(
    pictures: Pictures, allowed: NDArray[np.int64], icon: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each entry, a random allowed icon of the same style."""
    styles = np.asarray([i.style for i in pictures.icons])
    partner = np.empty_like(icon)
    for style in sorted(set(styles[allowed])):
        pool = allowed[styles[allowed] == style]
        mine = styles[icon] == style
        partner[mine] = rng.choice(pool, int(mine.sum()))
    return partner


def plan_captions(pictures: Pictures, plan: Plan, each: int, seed: int = 4) -> list[str]:
    """``each`` captions for every entry of the plan, in order."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for i, color, shade, other in zip(plan.icon, plan.color, plan.tint, plan.other, strict=True):
        icon = pictures.icons[i]
        shown = Shown(
            subject=pictures.subjects[icon.subject],
            phrase=_PHRASES[icon.style],
            background=COLOR_NAMES[color],
            tint=COLOR_NAMES[shade] if shade >= 0 else None,
            other=pictures.subjects[pictures.icons[other].subject] if other >= 0 else None,
        )
        texts.extend(caption(shown, rng) for _ in range(each))
    return texts


def tokenize(tokenizer: Tokenizer, texts: list[str], length: int = 32) -> Tensor:
    """Token ids (texts, length), int16: start, words, end, padded with end tokens and cut."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=1, pad_token="<|endoftext|>")
    parts = []
    for start in range(0, len(texts), 20_000):
        found = tokenizer.encode_batch(texts[start : start + 20_000])
        parts.append(torch.tensor([row.ids for row in found], dtype=torch.int16))
    return torch.cat(parts)


@torch.no_grad()
def plan_latents(vae: Any, pictures: Pictures, plan: Plan, batch: int = 256) -> Tensor:
    """Encode every entry of the plan: (entries, C, 16, 16) fp16 on the CPU."""
    device = pictures.pixels.device
    colors = palette(device)
    out = []
    for part in torch.arange(len(plan.icon)).split(batch):
        rows = part.numpy()
        rgba = pictures.draw(torch.from_numpy(plan.icon[rows]).to(device))
        shade = torch.from_numpy(plan.tint[rows]).to(device)
        tinted = tint(rgba, colors[shade.clamp_min(0)])
        rgba = torch.where((shade >= 0)[:, None, None, None], tinted, rgba)
        other = torch.from_numpy(plan.other[rows]).to(device)
        both = side_by_side(rgba, pictures.draw(other.clamp_min(0)))
        rgba = torch.where((other >= 0)[:, None, None, None], both, rgba)
        rgb = over(rgba, colors[torch.from_numpy(plan.color[rows]).to(device)])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            latents = encode(vae, rgb * 2 - 1)
        out.append(latents.half().cpu())
    return torch.cat(out)


def make_latents(
    pictures: Pictures,
    tokenizer: Tokenizer,
    work: Path,
    per_icon: int = 24,
    captions_each: int = 4,
    config: VaeConfig | None = None,
) -> Path:
    """Write ``work/latents.pt``: captions first, then, once the VAE is there, the latents."""
    target = work / "latents.pt"
    if target.exists():
        return target
    plan = draw_plan(pictures, per_icon)
    ids = tokenize(tokenizer, plan_captions(pictures, plan, captions_each))
    ids = ids.view(len(plan.icon), captions_each, -1)
    path = wait_for(work / "vae.safetensors", minutes=10)
    vae = build_vae(config or VaeConfig()).to(pictures.pixels.device)
    vae.load_state_dict(load_file(path))
    latents = plan_latents(vae, pictures, plan)
    save_atomic(target, {"latents": latents, "ids": ids})
    return target
