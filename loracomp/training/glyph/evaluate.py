"""Figures of a base model by the judge: are subject, style and background what the prompt says?"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from loracomp.training.glyph.augment import palette
from loracomp.training.glyph.captions import prompt
from loracomp.training.glyph.packages import ART_SETS, BASE_STYLES
from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.glyph.splits import unseen_subjects
from loracomp.training.glyph.store import Store

if TYPE_CHECKING:
    from loracomp.training.glyph.judge import Judge

_PHRASES = {art.style: art.phrase for art in ART_SETS}


@dataclass(frozen=True)
class Request:
    """One picture to make and what it must show."""

    subject: str
    style: str
    color: str
    text: str


@dataclass(frozen=True)
class Setting:
    """How pictures are sampled."""

    steps: int = 25
    guidance: float = 3.0
    guidance_rescale: float = 0.0


def requests(store: Store, count: int, seed: int = 6, colors: tuple[str, ...] = COLOR_NAMES) -> list[Request]:
    """``count`` random training subjects that all base styles draw, in each of these styles."""
    have = Counter(i.subject for i in store.icons if i.style in BASE_STYLES)
    pool = sorted(s for s, n in have.items() if n == len(BASE_STYLES) and s not in unseen_subjects())
    rng = np.random.default_rng(seed)
    out = []
    for i in rng.choice(len(pool), min(count, len(pool)), replace=False):
        for style in BASE_STYLES:
            color = colors[int(rng.integers(len(colors)))]
            text = prompt(store.subjects[pool[i]].name, _PHRASES[style], color)
            out.append(Request(pool[i], style, color, text))
    return out


def generate(pipe: Any, texts: list[str], setting: Setting, seed: int = 0, batch: int = 200) -> Tensor:
    """Pictures (N, 3, 128, 128) in [0, 1] on the CPU; each text's noise depends on its place only."""
    pipe.set_progress_bar_config(disable=True)
    shape = (pipe.unet.config.in_channels, *([pipe.unet.config.sample_size] * 2))
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(texts), *shape, generator=source)
    out = []
    for start in range(0, len(texts), batch):
        some = texts[start : start + batch]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = pipe(
                some,
                num_inference_steps=setting.steps,
                guidance_scale=setting.guidance,
                guidance_rescale=setting.guidance_rescale,
                latents=noise[start : start + batch].to(pipe.device, pipe.unet.dtype),
                output_type="pt",
            )
        out.append(made.images.float().cpu())
    return torch.cat(out)


def figures(judge: Judge, images: Tensor, wanted: list[Request]) -> dict[str, float]:
    """Shares of pictures whose subject, style and background the judge finds right."""
    groups = {slug: int(g) for slug, g in zip(judge.subjects, judge.group_index.tolist(), strict=True)}
    truth = torch.tensor([groups[w.subject] for w in wanted])
    raw = torch.tensor([judge.subjects.index(w.subject) for w in wanted])
    style = torch.tensor([judge.styles.index(w.style) for w in wanted])
    color = torch.tensor([COLOR_NAMES.index(w.color) for w in wanted])
    joint = _over(judge.group_probabilities, images)
    best = joint.topk(5, 1).indices
    return {
        "top1": _share(best[:, 0] == truth),
        "top5": _share((best == truth[:, None]).any(1)),
        "top1_ungrouped": _share(_over(judge.subject_probabilities, images).argmax(1) == raw),
        "style": _share(_over(judge.style_probabilities, images).argmax(1) == style),
        "color": _share(_over(judge.color_probabilities, images).argmax(1) == color),
        "color_by_border": _share(border_color(images) == color),
        "image_text_score": float(judge.score(images, [w.text for w in wanted]).mean()),
    }


def border_color(images: Tensor) -> Tensor:
    """Index of the named color nearest to the median of the outermost pixels: (N,)."""
    rim = [images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]]
    middle = torch.cat(rim, 2).median(2).values
    return torch.cdist(middle, palette()).argmin(1)


def sweep(pipe: Any, judge: Judge, wanted: list[Request], settings: list[Setting]) -> list[dict[str, float]]:
    """Figures of each setting on the same requests and noise."""
    rows = []
    for setting in settings:
        images = generate(pipe, [w.text for w in wanted], setting)
        rows.append({**vars(setting), **figures(judge, images, wanted)})
    return rows


def best_setting(rows: list[dict[str, float]]) -> Setting:
    """The setting with the highest sum of subject, style and background shares."""
    top = max(rows, key=lambda row: row["top1"] + 0.5 * row["top5"] + row["style"] + row["color"])
    return Setting(int(top["steps"]), top["guidance"], top["guidance_rescale"])


def _over(score: Any, images: Tensor) -> Tensor:
    return torch.cat([score(part).cpu() for part in images.split(200)])


def _share(right: Tensor) -> float:
    return float(right.float().mean())
