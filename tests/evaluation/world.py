"""A small world in which everything is known: shapes as subjects, inks as styles, and a judge of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.evaluation.artwork import Artwork, Look, Names, over
from loracomp.evaluation.clip_judge import ClipJudge
from loracomp.evaluation.judge import Vocabulary
from loracomp.evaluation.roster import Member, Part, Roster

SIDE = 32
SLUGS = tuple(f"thing-{n}" for n in range(12))
INKS = {"noto": (0.9, 0.1, 0.1), "mono": (0.0, 0.1, 0.0), "blobs": (0.1, 0.2, 0.9), "pixel": (0.6, 0.1, 0.6)}
PAPER = "neon"
COLORS = {"white": (255, 255, 255), "green": (92, 184, 92), "orange": (245, 154, 56)}
NAMES = Names(
    {slug: slug.replace("-", " ") for slug in SLUGS},
    {
        "mono": Look("mono", "mono style"),
        "blobs": Look("blobs", "blobs style"),
        "pixel": Look("pixel", "pixel art style", filter=True),
        PAPER: Look(PAPER, "neon style", filter=True, paper=True),
    },
    COLORS,
    "noto",
    dict.fromkeys(("noto", "mono", "blobs"), SLUGS),
)
VOCABULARY = Vocabulary(
    {slug: f"a {name} emoji" for slug, name in NAMES.subjects.items()},
    {name: look.phrase for name, look in NAMES.looks.items()},
    {color: f"{color} background" for color in COLORS},
)


def shapes() -> Tensor:
    """A different shape for each subject, (12, 1, 32, 32): connected to all four sides of a 28-px square."""
    blocks = torch.rand(len(SLUGS), 1, 7, 7, generator=torch.Generator().manual_seed(2)) > 0.5
    blocks[..., 3, :] = blocks[..., :, 3] = True
    return F.pad(F.interpolate(blocks.float(), scale_factor=4, mode="nearest"), (2, 2, 2, 2))


def painted(style: str) -> Tensor:
    """All subjects in the ink of a style, (12, 4, 32, 32) straight alpha."""
    alpha = shapes()
    ink = torch.tensor(INKS[style])[None, :, None, None].expand(len(SLUGS), 3, SIDE, SIDE)
    return torch.cat([ink, alpha], 1)


def pixel(rgba: Tensor, back: Tensor) -> Tensor:
    """The filter ``pixel``: another ink."""
    ink = torch.tensor(INKS["pixel"])[None, :, None, None].expand_as(rgba[:, :3])
    return over(torch.cat([ink, rgba[:, 3:]], 1), back)


def neon(rgba: Tensor, back: Tensor) -> Tensor:
    """The filter ``neon``: cyan on a black of its own."""
    ink = torch.tensor([0.2, 1.0, 1.0])[None, :, None, None].expand_as(rgba[:, :3])
    return over(torch.cat([ink, rgba[:, 3:]], 1), torch.zeros_like(back))


def artwork() -> Artwork:
    """The world's ground truth."""
    pictures = {style: painted(style) for style in NAMES.tiles}
    return Artwork(NAMES, pictures, {"pixel": pixel, PAPER: neon})


def _features(shape: Tensor, ink: Tensor, back: Tensor) -> Tensor:
    """Three unit blocks: what, in which ink, on which background."""
    blocks = (shape.flatten(1), ink - 0.45, back - 0.45)
    return torch.cat([F.normalize(block, dim=1) for block in blocks], 1)


def _see(pictures: Tensor) -> Tensor:
    pictures = F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    rim = torch.cat([pictures[..., 0, :], pictures[..., -1, :]], -1)
    back = rim.median(-1).values
    mask = ((pictures - back[:, :, None, None]).abs().amax(1, keepdim=True) > 0.2).float()
    ink = (pictures * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)
    return _features(mask - 0.5, ink, back)


def _read(texts: list[str]) -> Tensor:
    """Every thing, ink and background that a text names; nothing for what it does not name."""
    inks = {NAMES.looks[name].phrase: INKS[name] for name in ("mono", "blobs", "pixel")}
    rows = []
    for text in texts:
        slug = next((s for s, name in NAMES.subjects.items() if f"a {name} emoji" in text), None)
        shape = shapes()[SLUGS.index(slug)] - 0.5 if slug else torch.zeros(1, SIDE, SIDE)
        ink = next((torch.tensor(v) for k, v in inks.items() if k in text), None)
        ink = torch.tensor([0.2, 1.0, 1.0]) if "neon style" in text else ink
        color = next((torch.tensor(COLORS[c]) / 255 for c in COLORS if f"{c} background" in text), None)
        full = _features(shape[None], (ink if ink is not None else torch.full((3,), 0.45))[None],
                         (color if color is not None else torch.full((3,), 0.45))[None])  # fmt: skip
        rows.append(full)
    return torch.cat(rows)


def judge() -> ClipJudge:
    """A judge that sees this world as it is."""
    return ClipJudge("world", _see, _read, VOCABULARY, dict.fromkeys(("subject", "style", "colour"), 50.0))


class Shelf(Roster):
    """Adapters of one layer for everything in the world."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__({part: Member(part, "", Path(part[1])) for part in parts}, NAMES)

    def adapter(self, part: Part) -> Adapter:
        return Adapter({}, "glyph", "-".join(part))


def everything() -> Shelf:
    """An adapter for each subject, look and color."""
    looks = [("filter" if look.filter else "style", look.name) for look in NAMES.looks.values()]
    return Shelf([*(("subject", s) for s in SLUGS), *looks, *(("background", c) for c in COLORS)])
