"""Where in the image an adapter acts: masks as gates per token, in one pass.

A mask scales an adapter in every layer that has a place in the image: attention and feed-forward layers over
image tokens, convolutions over feature maps (at the place of the output). Layers without a place take no
part in masking and keep the adapter's full strength: those that see text (keys and values of a UNet's
cross-attention, the context stream of a transformer, text tokens in joint sequences) and those that see one
vector per image (time and modulation). An adapter whose mask is empty is silent in the whole denoiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loracomp.errors import UsageError
from loracomp.fusion.program import Program
from loracomp.fusion.stacked import StackedUpdate

Masks = Sequence[Tensor | None]
"""One per adapter: (height, width) or (images, height, width) in [0, 1]; None acts everywhere."""

SIDE = 256
_TEXT = (
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff_context",
    "context_embedder",
    "norm1_context",
)
_CROSS = ("attn2.to_k", "attn2.to_v")


@dataclass(frozen=True)
class Grid:
    """A way in which a denoiser lays image tokens out: rows × columns, with other tokens around them."""

    height: int
    width: int
    before: int = 0
    after: int = 0

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.before + self.height * self.width + self.after


def box_mask(box: tuple[float, float, float, float], side: int = SIDE) -> Tensor:
    """1 inside a box (left, top, right, bottom) in shares of the image, shape (side, side).

    Raises:
        UsageError: The box is empty or not within [0, 1].
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UsageError(f"box {box}: needs left < right and top < bottom, all within 0 and 1")
    mask = torch.zeros(side, side)
    mask[round(top * side) : round(bottom * side), round(left * side) : round(right * side)] = 1
    return mask


def checked(masks: Masks, adapters: int) -> Masks:
    """The masks in float32; raises :class:`UsageError` for other shapes or values."""
    if len(masks) != adapters:
        raise UsageError(f"{len(masks)} masks for {adapters} adapters; give one per adapter, None for none")
    for number, mask in enumerate(masks):
        if mask is None:
            continue
        if mask.ndim not in (2, 3) or not mask.numel():
            raise UsageError(f"mask {number} has shape {tuple(mask.shape)}; needs (height, width)")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise UsageError(f"mask {number} has values outside 0 … 1; scale it")
    return [None if mask is None else mask.float() for mask in masks]


def of_programs(programs: Sequence[Program], masks: Masks) -> Masks:
    """The masks, with the boxes of the programs' profiles for the adapters that have none."""
    found = list(masks) or [None] * len(programs[0].weights)
    for number, mask in enumerate(found):
        boxes = [program.profiles[number].box if program.profiles else None for program in programs]
        if mask is None and any(boxes):
            found[number] = torch.stack([box_mask(box or (0, 0, 1, 1)) for box in boxes])
    return found


def presence(masks: Masks) -> Tensor:
    """1 where an adapter has some place in an image, else 0, shape (images or 1, adapters)."""
    count = max([len(mask) for mask in masks if mask is not None and mask.ndim == 3], default=1)
    rows = [
        torch.ones(count) if mask is None else (mask.flatten(-2) > 0).any(-1).float().expand(count)
        for mask in masks
    ]
    return torch.stack(rows, dim=1)


def strengths(masks: Masks, grid: Grid) -> Tensor:
    """Each adapter's mask at the tokens of a grid, shape (images or 1, tokens, adapters); others have 1."""
    size = (grid.height, grid.width)
    planes = [
        torch.ones(1, *size) if mask is None else F.interpolate(_planes(mask), size=size, mode="area")[:, 0]
        for mask in masks
    ]
    images = max(len(plane) for plane in planes)
    inside = torch.stack([plane.expand(images, -1, -1) for plane in planes], dim=-1).flatten(1, 2)
    return F.pad(inside, (0, 0, grid.before, grid.after), value=1.0)


def _planes(mask: Tensor) -> Tensor:
    return mask.reshape(-1, 1, *mask.shape[-2:])


def grids(denoiser: nn.Module, sample: Tensor, arguments: Mapping[str, Any]) -> list[Grid]:
    """Every layout of image tokens that a denoiser call has."""
    if sample.ndim == 3:
        return _packed(sample, arguments)
    height, width = sample.shape[-2:]
    patch = getattr(denoiser.config, "patch_size", None)
    if patch:
        return [Grid(height // patch, width // patch)]
    found = []
    for _ in denoiser.down_blocks:  # type: ignore[union-attr]
        found.append(Grid(height, width))
        height, width = -(-height // 2), -(-width // 2)
    return found


def _packed(sample: Tensor, arguments: Mapping[str, Any]) -> list[Grid]:
    """Packed tokens with their positions in ``img_ids`` (FLUX), alone and behind the text tokens.

    Tokens of further images (context images have another first coordinate) have no place in this one.
    """
    ids = arguments["img_ids"].reshape(-1, 3)
    own = ids[ids[:, 0] == 0]
    height, width = (int(own[:, axis].max()) + 1 for axis in (1, 2))
    rest = sample.shape[1] - height * width
    text = arguments["encoder_hidden_states"].shape[1]
    return [Grid(height, width, 0, rest), Grid(height, width, text, rest)]


def is_spatial(path: str) -> bool:
    """Whether a layer sees image tokens, by its path; what sees neither has no fitting token count."""
    parts = path.split(".")
    return not (set(_TEXT) & set(parts) or (parts[0] == "unet" and path.endswith(_CROSS)))


Shared = tuple[bytes, torch.dtype]
"""Layers with the same owners of their ranks, in the same arithmetic, have the same gates."""


@dataclass
class Regions:
    """Gates per token for a run, laid out for the layers.

    Attributes:
        kinds: Which gates each layer takes.
        gates: By kind and number of tokens, shape (images or 1, tokens, C).
        pictures: The image of each row of the batch; None where one mask serves all images.
    """

    kinds: list[tuple[StackedUpdate, Shared]]
    gates: dict[Shared, dict[int, Tensor]]
    pictures: Tensor | None

    def show(self, part: slice) -> None:
        """Gives the layers their gates for a part of the rows."""
        chosen = self.gates
        if self.pictures is not None:
            rows = self.pictures[part]
            chosen = {kind: {n: gates[rows] for n, gates in by.items()} for kind, by in self.gates.items()}
        for update, kind in self.kinds:
            update.regions = chosen[kind]


def lay(
    updates: Mapping[str, StackedUpdate],
    masks: Masks,
    layout: Sequence[Grid],
    pictures: Tensor,
    device: torch.device,
) -> Regions:
    """The gates of all layers that see image tokens.

    Args:
        updates: The denoiser's stacked layers by path.
        masks: One per adapter.
        layout: Token layouts of the run.
        pictures: Which image each row of the batch belongs to, shape (rows,).
        device: Where the layers run.
    """
    by_tokens = {grid.tokens: strengths(masks, grid) for grid in layout}
    kinds = [
        (u, (u.owner.numpy().tobytes(), u.down.dtype)) for path, u in updates.items() if is_spatial(path)
    ]
    owners = {kind: update.owner for update, kind in kinds}
    gates = {
        kind: {n: values[..., owner].to(device, kind[1]) for n, values in by_tokens.items()}
        for kind, owner in owners.items()
    }
    own = any(len(values) > 1 for values in by_tokens.values())
    return Regions(kinds, gates, pictures.to(device) if own else None)
