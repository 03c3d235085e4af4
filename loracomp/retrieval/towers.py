"""Small networks that put adapters, texts and pictures into one space of 512 numbers.

An adapter is read twice, where there is something to read: by its weights, a token per changed layer and
tokens of what it hears and says, absent layers masked (:mod:`loracomp.retrieval.features`); and by what it
draws unasked (:mod:`loracomp.retrieval.drawn`), through the eyes that also look at pictures. Both are
functions of ΔW.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.retrieval.features import HALF, SKETCH, Features
from loracomp.retrieval.index import SPACES
from loracomp.retrieval.said import Said
from loracomp.retrieval.sites import GROUPS, site_table
from loracomp.retrieval.spectra import NUMBERS
from loracomp.retrieval.textprobes import DIRECTIONS, TRACKS

OUT = SPACES["learned"]
SITE_NUMBERS = NUMBERS + SKETCH + 2 * HALF
PICTURE = 64
DRAWN = 8
"""Pictures drawn with each adapter."""
_SPOKEN = len(TRACKS) * (DIRECTIONS + 1)
_TINY = 1e-8


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the networks.

    Attributes:
        base: Base whose adapters they read.
        text_width: Width of its text states; 0 for a base without text probes.
        width: Width of the adapter network.
        layers: Its depth.
        heads: Attention heads.
        narrow: Numbers that a layer's features are brought to, by a matrix per group of layers.
        queries: Vectors that its answer is pooled into.
        dropout: Dropout in training, in [0, 1).
        weights: Whether adapters are read by their weights.
        drawn: Whether they are read by what they draw.
    """

    base: str
    text_width: int
    width: int = 96
    layers: int = 2
    heads: int = 4
    narrow: int = 32
    queries: int = 2
    dropout: float = 0.1
    weights: bool = True
    drawn: bool = False


@dataclass(frozen=True, eq=False)
class Batch:
    """Features of several adapters of one base as tensors.

    Attributes:
        present: Shape (n, sites), bool.
        sites: Spectra, sketch, out and into side by side, shape (n, sites, 541).
        spoken: Shape (n, 18, 2 · d + 1): pull, then directions with their echoes, per track; see
            :func:`spoken_tokens`. Shape (n, 0, 1) for a base without text probes.
        heard: Whether an adapter has a text block, shape (n,), bool.
        drawn: What adapters draw, shape (n, 8, 3, 64, 64), uint8; None where none was drawn with.
        shown: Which of them were, shape (n,), bool; None for none.
    """

    present: Tensor
    sites: Tensor
    spoken: Tensor
    heard: Tensor
    drawn: Tensor | None = None
    shown: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return self._each(lambda part: part.to(device))

    def __getitem__(self, rows: Tensor) -> Batch:
        return self._each(lambda part: part[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        drawn, shown = (None if part is None else change(part) for part in (self.drawn, self.shown))
        present, sites, spoken, heard = map(change, (self.present, self.sites, self.spoken, self.heard))
        return Batch(present, sites, spoken, heard, drawn, shown)

    def __len__(self) -> int:
        return len(self.present)


def batch(rows: Sequence[Features], text_width: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Features as a batch; ``text_width`` is that of the base's text states."""
    sites = [torch.cat([r.spectra, r.sketch.float(), r.out.float(), r.into.float()], 1) for r in rows]
    spoken = [spoken_tokens(row, text_width) for row in rows]
    heard = torch.tensor([row.text is not None for row in rows])
    present = torch.stack([row.present for row in rows])
    shown = torch.tensor([row.drawn is not None for row in rows])
    drawn = None
    if bool(shown.any()):
        nothing = torch.zeros(DRAWN, 3, PICTURE, PICTURE, dtype=torch.uint8)
        drawn = torch.stack([nothing if row.drawn is None else row.drawn for row in rows])
    return Batch(
        present, torch.stack(sites).to(dtype), torch.stack(spoken).to(dtype), heard, drawn,
        None if drawn is None else shown,
    )  # fmt: skip


def spoken_tokens(features: Features, width: int) -> Tensor:
    """What an adapter hears and says as rows: heard direction, answer to it, log of its strength.

    Each track begins with its pull, which answers the common state and has no direction; directions and
    answers have unit length.

    Returns:
        Shape (18, 2 · width + 1), float32; zeros without a text block, no rows where ``width`` is 0.
    """
    if not width:
        return torch.zeros(0, 1)
    tokens = torch.zeros(len(TRACKS), DIRECTIONS + 1, 2 * width + 1)
    if features.text is None:
        return tokens.flatten(0, 1)
    block = features.text
    tokens[:, 1:, :width] = F.normalize(block.listen, dim=2)
    answers = torch.cat([block.pull[:, None], block.echo], 1)
    tokens[:, :, width : 2 * width] = F.normalize(answers, dim=2)
    tokens[:, :, -1] = answers.norm(dim=2).clamp_min(_TINY).log() / 4
    return tokens.flatten(0, 1)


class AdapterTower(nn.Module):
    """Features of adapters to unit vectors.

    Buffers ``middle`` and ``spread`` standardize each layer's numbers; training fills them.
    """

    groups: Tensor
    middle: Tensor
    spread: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        table = site_table(config.base)
        self.config = config
        groups = torch.tensor([GROUPS.index(site.group) for site in table.sites])
        self.register_buffer("groups", groups, persistent=False)
        self.register_buffer("middle", torch.zeros(len(table), SITE_NUMBERS))
        self.register_buffer("spread", torch.ones(len(table), SITE_NUMBERS))
        width = config.width
        self.narrow = nn.Parameter(torch.randn(len(GROUPS), SITE_NUMBERS, config.narrow) / SITE_NUMBERS**0.5)
        self.widen = nn.Sequential(nn.GELU(), nn.Linear(config.narrow, width))
        self.places = nn.Parameter(torch.randn(len(table), width) * 0.02)
        count = _SPOKEN if config.text_width else 0
        self.spoken = nn.Linear(2 * config.text_width + 1, width)
        self.spoken_places = nn.Parameter(torch.randn(count, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 3 * width, config.dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(config.queries * width, OUT)

    def forward(self, rows: Batch) -> Tensor:
        """Unit vectors, shape (n, 512)."""
        tokens, mask = self._tokens(rows)
        hidden = self.norm(self.layers(tokens, src_key_padding_mask=~mask))
        weights = self.queries @ hidden.mT / hidden.shape[2] ** 0.5
        weights = weights.masked_fill(~mask[:, None], float("-inf")).softmax(2)
        return F.normalize(self.head((weights @ hidden).flatten(1)), dim=1)

    def _tokens(self, rows: Batch) -> tuple[Tensor, Tensor]:
        kind = self.places.dtype
        numbers = ((rows.sites.to(kind) - self.middle) / self.spread).clamp(-8, 8)
        numbers = numbers * rows.present[..., None]
        sites = torch.einsum("nsf,sfw->nsw", numbers, self.narrow[self.groups])
        tokens, mask = self.widen(sites) + self.places, rows.present
        if rows.spoken.shape[1]:
            spoken = self.spoken(rows.spoken.to(kind)) + self.spoken_places
            tokens = torch.cat([tokens, spoken], 1)
            mask = torch.cat([mask, rows.heard[:, None].expand(-1, rows.spoken.shape[1])], 1)
        return tokens, mask


class TextTower(nn.Module):
    """Centered states of a text's tokens to unit vectors, by their largest and mean answers."""

    def __init__(self, width: int, hidden: int = 384) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU())
        self.head = nn.Sequential(nn.LayerNorm(2 * hidden), nn.Dropout(0.1), nn.Linear(2 * hidden, OUT))

    def forward(self, said: Said) -> Tensor:
        """Texts to (n, 512)."""
        there = said.there[..., None]
        hidden = self.each(said.states.float())
        most = hidden.masked_fill(~there, -1.0).amax(1)
        mean = (hidden * there).sum(1) / there.sum(1).clamp_min(1)
        return F.normalize(self.head(torch.cat([most, mean], 1)), dim=1)


class Eyes(nn.Module):
    """What pictures of 64 pixels look like: mean and largest of each map of a few convolutions."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 160)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        last = 3
        for place, width in enumerate(widths):
            blocks += [nn.Conv2d(last, width, 3 if place else 4, 2, 1), nn.GroupNorm(8, width), nn.ReLU()]
            last = width
        self.net = nn.Sequential(*blocks)
        self.width = 2 * last

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, 64, 64) in [0, 1] to (n, width)."""
        hidden = self.net(pictures * 2 - 1)
        return torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], 1)


class ImageTower(nn.Module):
    """What a picture looks like to unit vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.1), nn.Linear(width, OUT))

    def forward(self, seen: Tensor) -> Tensor:
        """Of :class:`Eyes` (n, width) to (n, 512)."""
        return F.normalize(self.net(seen), dim=1)


class DrawnTower(nn.Module):
    """What an adapter draws, and how that differs from what the base draws, to unit vectors.

    Buffer ``plain`` holds the base's own drawings of the same words and noise; training fills it.
    """

    plain: Tensor

    def __init__(self, width: int, hidden: int = 160) -> None:
        super().__init__()
        self.register_buffer("plain", torch.ones(DRAWN, 3, PICTURE, PICTURE))
        self.places = nn.Parameter(torch.randn(DRAWN, width) * 0.02)
        self.each = nn.Sequential(
            nn.LayerNorm(2 * width),
            nn.Linear(2 * width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
        )
        self.head = nn.Sequential(nn.LayerNorm(2 * hidden), nn.Dropout(0.1), nn.Linear(2 * hidden, OUT))

    def forward(self, seen: Tensor, plain: Tensor) -> Tensor:
        """Drawings (n, 8, width) and the base's (8, width) as eyes see them, to (n, 512)."""
        hidden = self.each(torch.cat([seen + self.places, seen - plain], 2))
        return F.normalize(self.head(torch.cat([hidden.mean(1), hidden.amax(1)], 1)), dim=1)
