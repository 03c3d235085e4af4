"""The two networks of a codec: residuals of latents from codes, and codes back from pictures.

Codes live in the lowest spatial frequencies of the latent: band f of channel c is one coordinate, so a code
has channels × bands coordinates. Band zero, a channel's mean, is left out: it would tint the picture.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.watermark.distortions import grid_size

GROUPS = 8


@dataclass(frozen=True)
class Shape:
    """Sizes of a codec.

    Attributes:
        channels: Channels of the latent.
        latent: Its side.
        pixels: Side of a picture.
        bands: Spatial frequencies per channel that carry codes.
        widths: Channels of the extractor at half of the latent's stride in pixels, and at the latent's side.
        blocks: Residual blocks at each.
        bits: Length of the messages of codecs with fixed carriers.
        carriers: ``keyed``: any code. ``fixed``: learned carriers, one per bit (AquaLoRA). ``zero``: the
            same, and the message of zeros leaves the picture as it is (AuthenLoRA). ``pooled``: in pixels,
            the same everywhere, which a decoder's convolutions can write (HiDDeN, EW-LoRA).
    """

    channels: int
    latent: int
    pixels: int
    bands: int
    widths: tuple[int, int] = (48, 96)
    blocks: tuple[int, int] = (2, 4)
    bits: int = 32
    carriers: str = "keyed"

    @property
    def dimensions(self) -> int:
        """Coordinates of a code."""
        return self.channels * self.bands if self.carriers == "keyed" else self.bits

    def table(self) -> dict[str, object]:
        """For a header."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def cosine_bands(side: int, count: int) -> Tensor:
    """The ``count`` lowest two-dimensional cosine patterns but the constant one: (count, side, side).

    Orthonormal (DCT-II), sorted by u² + v².

    Raises:
        ValueError: There are not so many.
    """
    if count > side * side - 1:
        raise ValueError(f"{count} bands do not fit on {side}x{side} places")
    at = torch.arange(side).double() + 0.5
    rows = torch.stack([(at * math.pi * u / side).cos() * (2 / side) ** 0.5 for u in range(side)])
    rows[0] /= 2**0.5
    pairs = sorted(
        ((u, v) for u in range(side) for v in range(side)), key=lambda p: (p[0] ** 2 + p[1] ** 2, p)
    )
    return torch.stack([rows[u][:, None] * rows[v] for u, v in pairs[1 : count + 1]]).float()


class Encoder(nn.Module):
    """Residuals from codes: a linear map of unit size, so that marks add up and scale with strength.

    ``forward`` takes codes (batch, dimensions) of length 1 and gives (batch, channels, latent, latent) with
    root mean square 1 on average over codes. Learned are a gain per band and a mixing of channels.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.bands: Tensor
        self.register_buffer("bands", cosine_bands(shape.latent, shape.bands), persistent=False)
        self.gains = nn.Parameter(torch.zeros(shape.channels, shape.bands))
        self.mix = nn.Parameter(torch.eye(shape.channels))

    def forward(self, codes: Tensor) -> Tensor:
        shape = self.shape
        table = codes.reshape(-1, shape.channels, shape.bands) * self.gains.exp()
        table = torch.einsum("dc,bcf->bdf", self.mix, table) / self._size()
        return torch.einsum("bcf,fhw->bchw", table, self.bands)

    def _size(self) -> Tensor:
        """Root mean square of the residual of a random code of length 1."""
        squares = (self.mix.square()[:, :, None] * self.gains.exp().square()).sum()
        places = self.shape.channels * self.shape.latent**2
        return (squares / (self.shape.dimensions * places)).sqrt()


class Lookup(nn.Module):
    """Residuals from messages by learned carriers, after AquaLoRA (arXiv:2405.11135, §3.1): linear, SiLU, a
    grid of a quarter of the latent, repeated over channels, enlarged, one convolution.

    ``forward`` takes messages (batch, bits) of 0 and 1 and gives residuals whose root mean square over many
    messages is 1, kept track of in ``size``. For ``zero`` codecs that of the message of zeros is taken off.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.grid = shape, max(1, shape.latent // 2)
        self.project = nn.Linear(shape.bits, self.grid**2)
        self.out = nn.Conv2d(shape.channels, shape.channels, 3, padding=1)
        self.size: Tensor
        self.register_buffer("size", torch.ones(()))

    def forward(self, messages: Tensor) -> Tensor:
        made = self._raw(messages)
        if self.shape.carriers == "zero":
            made = made - self._raw(torch.zeros_like(messages[:1]))
        if self.training and len(messages) > 1:
            size = made.square().mean().sqrt()
            self.size.copy_(torch.lerp(self.size, size.detach(), 0.01))
            return made / size.clamp_min(1e-4)
        return made / self.size.clamp_min(1e-4)

    def _raw(self, messages: Tensor) -> Tensor:
        grid = F.silu(self.project(messages)).reshape(-1, 1, self.grid, self.grid)
        grid = F.interpolate(grid.expand(-1, self.shape.channels, -1, -1), size=(self.shape.latent,) * 2)
        return self.out(grid)


class Block(nn.Module):
    """A residual block; group norms, since batch norms would make one picture's reading depend on others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(min(GROUPS, width), width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(F.silu(self.norms[0](x)))
        return x + self.second(F.silu(self.norms[1](inner)))


class Painter(nn.Module):
    """Residuals of pictures from messages: a filter of its features per bit, added with the bit's sign.

    It only teaches a pooled extractor what to read; marks are written by a decoder, whose changed
    convolutions are such filters too: on a flat ground both leave nothing but a colour, so that a message
    tiled over the picture (HiDDeN, arXiv:1807.09937, §3) would have three numbers to hide in.

    ``forward`` takes messages (batch, bits) and pictures (batch, 3, H, W) in [0, 1], and gives residuals of
    root mean square 1.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.widths[0]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.block = Block(width)
        self.filters = nn.Conv2d(width, 3 * shape.bits, 3, padding=1, bias=False)

    def forward(self, messages: Tensor, pictures: Tensor) -> Tensor:
        x = self.block(self.stem(pictures * 2 - 1))
        made = self.filters(F.silu(x)).unflatten(1, (-1, 3))
        made = torch.einsum("nb,nbchw->nchw", (2 * messages - 1).to(made), made)
        return made / made.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-4)


class PooledExtractor(nn.Module):
    """A logit per bit from features averaged over the whole picture, at half its size.

    ``forward`` takes (batch, 3, H, W) in [0, 1] and gives (batch, bits).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        narrow, wide = shape.widths
        self.stem = nn.Conv2d(12, narrow, 3, padding=1)
        self.early = nn.Sequential(*(Block(narrow) for _ in range(shape.blocks[0])))
        self.down = nn.Conv2d(narrow, wide, 2, stride=2)
        self.late = nn.Sequential(*(Block(wide) for _ in range(shape.blocks[1])))
        self.norm = nn.GroupNorm(min(GROUPS, wide), wide)
        self.logits = nn.Linear(wide, shape.bits)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.late(self.down(self.early(self.stem(F.pixel_unshuffle(pictures * 2 - 1, 2)))))
        return self.logits(F.silu(self.norm(x)).mean((2, 3)).float())


class Extractor(nn.Module):
    """Coordinates from pictures.

    ``forward`` takes (batch, 3, pixels, pixels) in [0, 1] and gives (batch, dimensions): for keyed codecs an
    estimate of the code times its strength, for fixed ones a logit per bit.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.stride = grid_size(shape.pixels, shape.latent)
        narrow, wide = shape.widths
        half = max(1, self.stride // 2)
        self.cell = half
        self.stem = nn.Conv2d(3 * half * half, narrow, 3, padding=1)
        self.early = nn.Sequential(*(Block(narrow) for _ in range(shape.blocks[0])))
        ratio = self.stride // half
        self.down = nn.Conv2d(narrow, wide, ratio, stride=ratio)
        self.late = nn.Sequential(*(Block(wide) for _ in range(shape.blocks[1])))
        self.norm = nn.GroupNorm(min(GROUPS, wide), wide)
        self.head = nn.Conv2d(wide, shape.channels, 1)
        self.bands: Tensor
        self.register_buffer("bands", cosine_bands(shape.latent, shape.bands), persistent=False)
        fixed = shape.carriers != "keyed"
        self.scale = nn.Parameter(torch.tensor(0.0)) if not fixed else None
        self.logits = nn.Linear(shape.channels * shape.bands, shape.bits) if fixed else None

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.pixel_unshuffle(pictures * 2 - 1, self.cell)
        x = self.late(self.down(self.early(self.stem(x))))
        field = self.head(F.silu(self.norm(x)))
        table = torch.einsum("bchw,fhw->bcf", field.float(), self.bands).flatten(1)
        if self.logits is not None:
            return self.logits(table)
        return table * self.scale.exp()  # type: ignore[union-attr]
