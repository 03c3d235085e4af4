"""Batches for the judge: pictures of icons, filters and pairs, with labels and captions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from loracomp.evaluation.glyph_judge import TEXT_LENGTH
from loracomp.training.glyph.augment import (
    inked,
    palette,
    shuffle_channels,
    side_by_side,
    soften,
    tint,
)
from loracomp.training.glyph.cells import ALL_STYLES, judge_may_see
from loracomp.training.glyph.filters import FILTER_PHRASES, FILTERS, OWN_PAPER, over
from loracomp.training.glyph.packages import ART_SETS, EXTRA_SETS
from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.splits import Cell
from loracomp.training.glyph.subjects import Subject

_PLAIN_GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
_DIRECTED = {"left", "right", "first", "last", "waxing", "waning", "o", "thirty", "crescent", "quarter"}
SHARE_PAIRED, SHARE_CROPPED, SHARE_INKED = 0.10, 0.20, 0.10
STYLE_PHRASES = {art.style: art.phrase for art in ART_SETS} | FILTER_PHRASES


@dataclass(frozen=True)
class Batch:
    """Pictures (B, 3, 128, 128) in [0, 1]; labels (B,), -1 where a picture has none."""

    pictures: Tensor
    subject: Tensor
    style: Tensor
    color: Tensor


class JudgeData:
    """Draws batches from the icons that the held-out cells leave."""

    def __init__(self, pictures: Pictures, held_out: frozenset[Cell]) -> None:
        self.pictures = pictures
        self.slugs = sorted(pictures.subjects)
        device = pictures.pixels.device
        at = {slug: i for i, slug in enumerate(self.slugs)}
        self.subject = torch.tensor([at[i.subject] for i in pictures.icons], device=device)
        style = [ALL_STYLES.index(i.style) if i.style in ALL_STYLES else -1 for i in pictures.icons]
        self.style = torch.tensor(style, device=device)
        self.mirrored = torch.tensor(
            [_mirrors(pictures.subjects[i.subject]) for i in pictures.icons], device=device
        )
        self.allowed = {
            name: pictures.where([judge_may_see(i, name, held_out) for i in pictures.icons])
            for name in ALL_STYLES
        }
        extra = {art.style for art in EXTRA_SETS}
        further = pictures.where([i.style in extra for i in pictures.icons])
        self.art = torch.cat([*(self.allowed[a.style] for a in ART_SETS), further]).long()
        self.colors = palette(device)

    def draw(self, size: int) -> Batch:
        """A third filtered pictures, the others as drawn: some in pairs, some only in part."""
        device = self.pictures.pixels.device
        each = max(1, size // 3 // len(FILTERS))
        plain = size - each * len(FILTERS)
        color = self._colors(size)
        icons = self.art[torch.randint(len(self.art), (plain,), device=device)]
        first, painted = self._plain(icons, self.colors[color[:plain]])
        parts, subject = [first], [self.subject[icons]]
        style = [torch.where(painted, -1, self.style[icons])]
        pairs, crops = _parts(plain)
        subject[0][:crops] = -1
        color[pairs:crops] = -1
        for name, paint in FILTERS.items():
            chosen = self.allowed[name]
            icons = chosen[torch.randint(len(chosen), (each,), device=device)]
            rows = slice(sum(map(len, parts)), sum(map(len, parts)) + each)
            parts.append(paint(warped(self._drawn(icons)), self.colors[color[rows]]))
            subject.append(self.subject[icons])
            style.append(torch.full((each,), ALL_STYLES.index(name), device=device))
            if name in OWN_PAPER:
                color[rows] = -1
        rgb = spoiled(torch.cat(parts).clamp(0, 1))
        return Batch(rgb, torch.cat(subject), torch.cat(style), color)

    def _drawn(self, icons: Tensor) -> Tensor:
        """Random variants, half of them mirrored where the subject has no direction."""
        rgba = self.pictures.draw(icons)
        turn = (torch.rand(len(icons), device=rgba.device) < 0.5) & self.mirrored[icons]
        return torch.where(turn[:, None, None, None], rgba.flip(3), rgba)

    def _plain(self, icons: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures, the first in pairs and the next ones cropped; and which are repainted."""
        rgba = warped(self._drawn(icons))
        pairs, crops = _parts(len(icons))
        rgba[:pairs] = side_by_side(rgba[:pairs], rgba[:pairs].roll(1, 0))
        rgba[pairs:crops] = warped(rgba[pairs:crops], (1.6, 2.6), 0.5)
        shade = self.colors[torch.randint(len(self.colors), (len(icons),), device=rgba.device)]
        some = (torch.rand(len(icons), device=rgba.device) < 0.12)[:, None, None, None]
        hued = torch.where(some, tint(rgba, shade), rgba)
        drawn = torch.rand(len(icons), 1, 1, 1, device=rgba.device) < SHARE_INKED
        drawn[:crops] = False
        hued = torch.where(drawn, inked(rgba), hued)
        mixed = torch.cat([shuffle_channels(hued[:, :3], 0.12), hued[:, 3:]], 1)
        return over(mixed, back), (mixed != rgba).flatten(1).any(1)

    def _colors(self, count: int) -> Tensor:
        device = self.pictures.pixels.device
        color = torch.randint(len(COLOR_NAMES), (count,), device=device)
        return torch.where(torch.rand(count, device=device) < 0.4, torch.zeros_like(color), color)


def _parts(count: int) -> tuple[int, int]:
    """Where the pairs end among ``count`` plain pictures, and where the crops after them do."""
    pairs = round(SHARE_PAIRED * count)
    return pairs, pairs + round(SHARE_CROPPED * count)


def warped(rgba: Tensor, scale: tuple[float, float] = (0.8, 1.15), reach: float = 0.08) -> Tensor:
    """Turn by up to 15 degrees, stretch by 12 %, scale, shift by ``reach``, and bend smoothly."""
    count, device = len(rgba), rgba.device
    angle = (torch.rand(count, device=device) - 0.5) * (30 * math.pi / 180)
    size = 1 / (scale[0] + (scale[1] - scale[0]) * torch.rand(count, device=device))
    wide = size * (0.94 + 0.12 * torch.rand(count, device=device))
    shift = (torch.rand(count, 2, device=device) - 0.5) * 4 * reach
    turn = [angle.cos() * wide, -angle.sin() * size, shift[:, 0]]
    turn += [angle.sin() * wide, angle.cos() * size, shift[:, 1]]
    grid = F.affine_grid(torch.stack(turn, 1).view(count, 2, 3), list(rgba.shape), align_corners=False)
    bend = F.interpolate(torch.randn(count, 2, 4, 4, device=device), rgba.shape[-2:], mode="bicubic")
    bend = bend.permute(0, 2, 3, 1) * (0.03 * torch.rand(count, 1, 1, 1, device=device))
    return F.grid_sample(rgba, grid + bend, align_corners=False)


def spoiled(rgb: Tensor) -> Tensor:
    """Some pictures blurred, some at half resolution, all with a little noise."""
    rgb = soften(rgb, 0.2)
    coarse = F.interpolate(F.avg_pool2d(rgb, 2), scale_factor=2, mode="bilinear")
    chosen = torch.rand(len(rgb), 1, 1, 1, device=rgb.device) < 0.12
    rgb = torch.where(chosen, coarse, rgb)
    return (rgb + 0.015 * torch.randn_like(rgb)).clamp(0, 1)


class Phrasebook:
    """Token pieces of subjects, styles and colors, from which captions are joined on the device."""

    def __init__(self, tokenizer: Tokenizer, data: JudgeData, device: str) -> None:
        subjects = [data.pictures.subjects[slug] for slug in data.slugs]
        bodies = []
        for subject in subjects:
            words = list(subject.keywords) or [subject.name]
            forms = [f"a {subject.name} emoji", subject.name, f"a {subject.name}"]
            forms += [f"{subject.name}, {words[i % len(words)]}" for i in range(3)]
            forms += [f"{words[0]} {words[-1]}", f"a picture of a {subject.name}"]
            bodies.append(forms)
        self.forms = len(bodies[0])
        flat = [text for forms in bodies for text in forms]
        self.bodies = _pieces(tokenizer, flat, device)
        self.styles = _pieces(tokenizer, [f", {STYLE_PHRASES[s]}" for s in ALL_STYLES], device)
        self.colors = _pieces(tokenizer, [f", {c} background" for c in COLOR_NAMES], device)

    def captions(self, batch: Batch) -> Tensor:
        """Token ids (B, 24) of one caption for each picture; parts it has no label for are left out."""
        count, device = len(batch.subject), batch.subject.device
        form = torch.randint(self.forms, (count,), device=device)
        rows = batch.subject.clamp_min(0) * self.forms + form
        named = torch.rand(count, device=device) < 0.8
        told = (torch.rand(count, device=device) < 0.8) & (batch.color >= 0)
        named = named & (batch.style >= 0)
        style = self.styles, batch.style.clamp_min(0), named
        parts = [(self.bodies, rows, batch.subject >= 0), style]
        return joined([*parts, (self.colors, batch.color.clamp_min(0), told)])


def joined(parts: list[tuple[tuple[Tensor, Tensor], Tensor, Tensor]]) -> Tensor:
    """Start token, then each part's tokens where its flag is set, then end tokens: (B, 24).

    A part is ((pieces, lengths), rows of the pieces to take (B,), flags (B,)).
    """
    count = len(parts[0][1])
    device = parts[0][1].device
    out = torch.ones(count, TEXT_LENGTH + 64, dtype=torch.long, device=device)
    out[:, 0] = 0
    at = torch.ones(count, dtype=torch.long, device=device)
    for (pieces, lengths), rows, flags in parts:
        reach = torch.arange(pieces.shape[1], device=device)
        length = torch.where(flags, lengths[rows], torch.zeros_like(rows))
        keep = reach[None, :] < length[:, None]
        spot = torch.where(keep, at[:, None] + reach[None, :], TEXT_LENGTH + 63)
        out.scatter_(1, spot, torch.where(keep, pieces[rows], 1))
        at = at + length
    out = out[:, :TEXT_LENGTH].clone()
    out[:, -1] = 1
    return out


def _mirrors(subject: Subject) -> bool:
    """True when the mirror image of the subject shows the same subject."""
    words = set(subject.slug.split("-"))
    return subject.group in _PLAIN_GROUPS and not words & _DIRECTED


def _pieces(tokenizer: Tokenizer, texts: list[str], device: str) -> tuple[Tensor, Tensor]:
    """Tokens of texts without start and end, padded (texts, most), and their lengths."""
    ids = [found.ids[1:-1][:16] for found in tokenizer.encode_batch(texts)]
    most = max(len(row) for row in ids)
    padded = torch.tensor([row + [1] * (most - len(row)) for row in ids], device=device)
    return padded, torch.tensor([len(row) for row in ids], device=device)
