"""What happens to pictures on their way, differentiable, for the training of an extractor.

Pictures are (batch, 3, H, W) RGB in [0, 1] and keep their size. One distortion is drawn per batch part, as a
list of (name, share) says; every draw comes from a generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Distortion = Callable[[Tensor, torch.Generator], Tensor]

_LUMA = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]).float()  # fmt: skip
_CHROMA = torch.full((8, 8), 99.0)
_CHROMA[:4, :4] = torch.tensor(
    [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
).float()
_TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def grid_size(pixels: int, latent: int) -> int:
    """Pixels per place of the latent; raises ValueError unless it is a power of two."""
    stride = pixels // latent
    if stride * latent != pixels or stride & (stride - 1):
        raise ValueError(f"{pixels} pixels over {latent} places is no power of two")
    return stride


def jpeg(pictures: Tensor, quality: Tensor) -> Tensor:
    """JPEG with 4:2:0 chroma and the standard tables (ITU-T T.81, annex K), rounding passed straight through.

    The value is that of real rounding, the gradient that of none.

    Args:
        pictures: Any size.
        quality: (batch,) in 1 to 100, as libjpeg takes it.
    """
    height, width = pictures.shape[-2:]
    padded = F.pad(pictures, (0, -width % 16, 0, -height % 16), mode="replicate")
    matrix = _TO_YCC.to(pictures)
    ycc = torch.einsum("dc,bchw->bdhw", matrix, padded * 255)
    factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    luma = _quantized(ycc[:, :1] - 128, _LUMA, factor) + 128
    chroma = _quantized(F.avg_pool2d(ycc[:, 1:], 2), _CHROMA, factor)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    out = torch.einsum("dc,bchw->bdhw", torch.linalg.inv(matrix), torch.cat([luma, chroma], 1)) / 255
    return out[..., :height, :width].clamp(0, 1)


def _quantized(planes: Tensor, table: Tensor, factor: Tensor) -> Tensor:
    at = torch.arange(8, device=planes.device, dtype=planes.dtype)
    dct = ((2 * at[None] + 1) * at[:, None] * math.pi / 16).cos() * 0.5
    dct[0] *= 2**-0.5
    batch, channels, height, width = planes.shape
    tiles = planes.reshape(batch, channels, height // 8, 8, width // 8, 8).permute(0, 1, 2, 4, 3, 5)
    steps = (table.to(planes) * factor.to(planes)[:, None, None] + 0.5).floor().clamp(1, 255)
    steps = steps[:, None, None, None]
    values = dct @ tiles @ dct.T / steps
    values = values + (values.round() - values).detach()
    tiles = dct.T @ (values * steps) @ dct
    return tiles.permute(0, 1, 2, 4, 3, 5).reshape(batch, channels, height, width)


def blur(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; sigma in pixels, edges replicated."""
    reach = max(1, math.ceil(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    wide = F.pad(pictures, (reach,) * 4, mode="replicate")
    rows = F.conv2d(wide, kernel[:, None, None, :], groups=3)
    return F.conv2d(rows, kernel[:, None, :, None], groups=3)


def resized(pictures: Tensor, share: float) -> Tensor:
    """To ``share`` of the side and back."""
    size = pictures.shape[-2:]
    small = [max(8, round(side * share)) for side in size]
    away = F.interpolate(pictures, size=small, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(away, size=size, mode="bilinear", antialias=True, align_corners=False)


def cropped(pictures: Tensor, top: int, left: int, side: int) -> Tensor:
    """A square cut out and brought back to the picture's size."""
    part = pictures[..., top : top + side, left : left + side]
    return F.interpolate(part, size=pictures.shape[-2:], mode="bilinear", align_corners=False)


def colored(pictures: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Factors (batch,) around 1, applied in this order."""
    b, c, s = (value.to(pictures)[:, None, None, None] for value in (brightness, contrast, saturation))
    out = (pictures * b).clamp(0, 1)
    mean = out.mean((1, 2, 3), keepdim=True)
    out = (mean + c * (out - mean)).clamp(0, 1)
    gray = (out * _TO_YCC[0].to(out)[:, None, None]).sum(1, keepdim=True)
    return (gray + s * (out - gray)).clamp(0, 1)


def _between(low: float, high: float, source: torch.Generator, count: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=source)


def _jpeg(pictures: Tensor, source: torch.Generator) -> Tensor:
    return jpeg(pictures, _between(30, 95, source, len(pictures)).to(pictures.device))


def _crop(pictures: Tensor, source: torch.Generator) -> Tensor:
    height = pictures.shape[-1]
    side = round(height * math.sqrt(float(_between(0.5, 1, source))))
    top, left = (int(torch.randint(height - side + 1, (1,), generator=source)) for _ in range(2))
    return cropped(pictures, top, left, side)


def _noise(pictures: Tensor, source: torch.Generator) -> Tensor:
    noise = torch.randn(pictures.shape, generator=source).to(pictures)
    return (pictures + _between(0, 0.08, source).to(pictures) * noise).clamp(0, 1)


def _color(pictures: Tensor, source: torch.Generator) -> Tensor:
    return colored(pictures, *(_between(0.7, 1.3, source, len(pictures)) for _ in range(3)))


def _rounded(pictures: Tensor, source: torch.Generator) -> Tensor:
    """As an 8-bit file holds them."""
    clipped = pictures.clamp(0, 1)
    return clipped + ((clipped * 255).round() / 255 - clipped).detach()


DISTORTIONS: dict[str, Distortion] = {
    "identity": _rounded,
    "jpeg": _jpeg,
    "crop": _crop,
    "resize": lambda pictures, source: resized(pictures, float(_between(0.5, 1.5, source))),
    "blur": lambda pictures, source: blur(pictures, float(_between(0.3, 1.5, source))),
    "noise": _noise,
    "color": _color,
}
SHARES: tuple[tuple[str, float], ...] = (
    ("identity", 0.25), ("jpeg", 0.2), ("crop", 0.15), ("resize", 0.1), ("blur", 0.1), ("noise", 0.1),
    ("color", 0.1),
)  # fmt: skip
MILD: tuple[tuple[str, float], ...] = (("identity", 0.7), ("crop", 0.1), ("noise", 0.2))


def distorted(
    pictures: Tensor, shares: Sequence[tuple[str, float]], source: torch.Generator, parts: int = 4
) -> Tensor:
    """Pictures in ``parts`` parts, each through a distortion of its own."""
    weights = torch.tensor([share for _, share in shares])
    out = []
    for part in pictures.tensor_split(min(parts, len(pictures))):
        name = shares[int(torch.multinomial(weights, 1, generator=source))][0]
        out.append(DISTORTIONS[name](part, source))
    return torch.cat(out)
