"""How visible a change is, differentiable; pictures (batch, 3, H, W) in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_YUV = torch.tensor([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.1]])


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture: (batch,)."""
    error = (first - second).square().flatten(1).mean(1).clamp_min(1e-10)
    return -10 * torch.log10(error)


def visible(marked: Tensor, clean: Tensor) -> Tensor:
    """Squared error in YUV, counted double where the clean picture is flat: a scalar.

    Texture hides a mark and a white background does not (Watson 1993, contrast masking).
    """
    change = torch.einsum("dc,bchw->bdhw", _YUV.to(marked), marked - clean).square().sum(1)
    gray = clean.mean(1, keepdim=True)
    spread = (F.avg_pool2d(gray.square(), 9, 1, 4) - F.avg_pool2d(gray, 9, 1, 4).square()).clamp_min(0)
    flat = torch.exp(-spread.sqrt()[:, 0] / 0.05)
    return (change * (1 + flat)).mean()


def peak(marked: Tensor, clean: Tensor) -> Tensor:
    """Mean over pictures of the largest local change, in windows of 1/16 of the side (AquaLoRA's PRVL)."""
    window = max(2, marked.shape[-1] // 16)
    change = (marked - clean).abs().mean(1, keepdim=True)
    return F.avg_pool2d(change, window, stride=max(1, window // 2)).flatten(1).amax(1).mean()
