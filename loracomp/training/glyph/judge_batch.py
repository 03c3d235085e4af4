"""Batches for the judge: pictures of icons, filters and pairs, with labels and captions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from loracomp.training.glyph.augment import palette, shuffle_channels, side_by_side, soften, tint
from loracomp.training.glyph.cells import ALL_STYLES, style_shows
from loracomp.training.glyph.filters import FILTER_PHRASES, FILTERS, OWN_PAPER, over
from loracomp.training.glyph.judge import TEXT_LENGTH
from loracomp.training.glyph.packages import ART_SETS
from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.splits import Cell

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
        style = [ALL_STYLES.index(i.style) for i in pictures.icons]
        self.style = torch.tensor(style, device=device)
        self.allowed = {
            name: pictures.where(
                [style_shows(i, name) and (i.subject, name) not in held_out for i in pictures.icons]
            )
            for name in ALL_STYLES
        }
        art = [self.allowed[a.style] for a in ART_SETS]
        self.art = torch.cat(art)
        self.colors = palette(device)

    def draw(self, size: int) -> Batch:
        """A third filtered pictures, the others as drawn; a tenth of these shown in pairs."""
        device = self.pictures.pixels.device
        each = max(1, size // 3 // len(FILTERS))
        plain = size - each * len(FILTERS)
        icons = self.art[torch.randint(len(self.art), (plain,), device=device)]
        color = self._colors(size)
        parts = [self._plain(icons, self.colors[color[:plain]])]
        subject, style = [self.subject[icons]], [self.style[icons]]
        subject[0][: plain // 10] = -1
        for name, paint in FILTERS.items():
            chosen = self.allowed[name]
            icons = chosen[torch.randint(len(chosen), (each,), device=device)]
            rows = slice(sum(map(len, parts)), sum(map(len, parts)) + each)
            parts.append(paint(warped(self.pictures.draw(icons)), self.colors[color[rows]]))
            subject.append(self.subject[icons])
            style.append(torch.full((each,), ALL_STYLES.index(name), device=device))
            if name in OWN_PAPER:
                color[rows] = -1
        rgb = spoiled(torch.cat(parts).clamp(0, 1))
        return Batch(rgb, torch.cat(subject), torch.cat(style), color)

    def _plain(self, icons: Tensor, back: Tensor) -> Tensor:
        rgba = warped(self.pictures.draw(icons))
        tenth = len(icons) // 10
        rgba[:tenth] = side_by_side(rgba[:tenth], rgba[:tenth].roll(1, 0))
        painted = self.style[icons] != ALL_STYLES.index("mono")
        shade = self.colors[torch.randint(len(self.colors), (len(icons),), device=rgba.device)]
        some = (torch.rand(len(icons), device=rgba.device) < 0.08) & painted
        rgba = torch.where(some[:, None, None, None], tint(rgba, shade), rgba)
        rgba = torch.cat([shuffle_channels(rgba[:, :3], 0.08), rgba[:, 3:]], 1)
        return over(rgba, back)

    def _colors(self, count: int) -> Tensor:
        device = self.pictures.pixels.device
        color = torch.randint(len(COLOR_NAMES), (count,), device=device)
        return torch.where(torch.rand(count, device=device) < 0.4, torch.zeros_like(color), color)


def warped(rgba: Tensor) -> Tensor:
    """Turn by up to 12 degrees, scale by 0.85 to 1.1 and shift by up to 6 %."""
    count, device = len(rgba), rgba.device
    angle = (torch.rand(count, device=device) - 0.5) * (24 * math.pi / 180)
    scale = 1 / (0.85 + 0.25 * torch.rand(count, device=device))
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = (torch.rand(count, 2, device=device) - 0.5) * 0.24
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(count, 2, 3)
    grid = F.affine_grid(rows, list(rgba.shape), align_corners=False)
    return F.grid_sample(rgba, grid, align_corners=False)


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
        parts = [(self.bodies, rows, batch.subject >= 0), (self.styles, batch.style, named)]
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


def _pieces(tokenizer: Tokenizer, texts: list[str], device: str) -> tuple[Tensor, Tensor]:
    """Tokens of texts without start and end, padded (texts, most), and their lengths."""
    ids = [found.ids[1:-1][:16] for found in tokenizer.encode_batch(texts)]
    most = max(len(row) for row in ids)
    padded = torch.tensor([row + [1] * (most - len(row)) for row in ids], device=device)
    return padded, torch.tensor([len(row) for row in ids], device=device)
