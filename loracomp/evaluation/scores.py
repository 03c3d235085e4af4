"""What a picture of a cell is worth: every score of the benchmark, one value per picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loracomp.evaluation.alignment import aligned_psnr
from loracomp.evaluation.artwork import Artwork
from loracomp.evaluation.cells import Cell, plainly, prompt
from loracomp.evaluation.judge import Judge
from loracomp.evaluation.pixels import halves

Values = dict[str, list[float | None]]


@dataclass(frozen=True)
class Score:
    """A column of the benchmark.

    Attributes:
        title: Heading in tables.
        digits: Digits after the point.
        meaning: What it is, with its range.
    """

    title: str
    digits: int
    meaning: str


SCORES = {
    "subject": Score("subject", 2, "share whose subject the judge names first; of two, each in its half"),
    "subject5": Score("subject top 5", 2, "share whose subject is among the judge's first five"),
    "style": Score(
        "style",
        2,
        "share whose style the judge names first; a style under a filter counts as seen in the artist's",
    ),
    "background": Score("background", 2, "share whose background color the judge names first"),
    "similarity": Score("similarity", 3, "cosine with the artist's picture in the judge's embedding"),
    "psnr": Score("PSNR dB", 1, "against the artist's picture at its best size and place"),
    "image_text": Score("CLIPScore", 3, "2.5 max(cos, 0) of picture and prompt, arXiv:2104.08718"),
    "diversity": Score("diversity", 3, "1 - cosine between seeds, mean over pairs"),
}


def score(judge: Judge, artwork: Artwork, cell: Cell, pictures: Tensor) -> Values:
    """All scores of pictures of one cell.

    Args:
        judge: Who names and compares.
        artwork: Where the artist's picture comes from.
        cell: What was asked for.
        pictures: Shape (B, 3, S, S) in [0, 1].

    Returns:
        B values of each of :data:`SCORES`, and one of ``diversity``; None where one has no meaning.
    """
    known = judge.vocabulary
    truth = artwork.truth(cell)[None]
    views = _views(cell, pictures)
    top1, top5 = _subject_hits(judge, cell, views)
    styles = _styles(judge, views) == _wanted_style(judge, cell, truth)
    blank = torch.full((len(pictures),), float("nan"))
    backs = judge.colours(pictures).argmax(1) == known.colour(cell.background) if cell.background else blank
    likeness, decibels = _truth_scores(judge, artwork, cell, pictures)
    text = prompt(cell, plainly(artwork.names))
    found = {
        "subject": top1,
        "subject5": top5,
        "style": styles,
        "background": backs,
        "similarity": likeness,
        "psnr": decibels,
        "image_text": judge.image_text(pictures, [text] * len(pictures)),
        "diversity": diversity(judge.embed(pictures))[None],
    }
    return {name: [_finite(value) for value in values.double().tolist()] for name, values in found.items()}


def _finite(value: float) -> float | None:
    return None if value != value else round(value, 6)


def diversity(vectors: Tensor) -> Tensor:
    """Mean of 1 - cosine over all pairs of unit vectors (B, D); NaN for fewer than two."""
    count = len(vectors)
    if count < 2:
        return torch.tensor(float("nan"))
    cosines = vectors @ vectors.T
    return 1 - (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))


def _views(cell: Cell, pictures: Tensor) -> tuple[Tensor, ...]:
    """What the judge looks at: the picture, or of two subjects each half, enlarged."""
    return halves(pictures) if len(cell.subjects) == 2 else (pictures,)


def _styles(judge: Judge, views: tuple[Tensor, ...]) -> Tensor:
    """The likeliest style over all views, (B,)."""
    return torch.stack([judge.styles(view) for view in views]).mean(0).argmax(1)


def _wanted_style(judge: Judge, cell: Cell, truth: Tensor) -> Tensor | int:
    """The style's column; of a style under a filter, whichever the judge sees in the artist's picture."""
    if cell.style and cell.filter:
        return _styles(judge, _views(cell, truth))
    return judge.vocabulary.style(cell.look)


def _subject_hits(judge: Judge, cell: Cell, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Share of the cell's subjects found first and among five, (B,) each.

    Two subjects are looked for in the two halves, in whichever order is likelier.
    """
    columns = [judge.vocabulary.subject(slug) for slug in cell.subjects]
    found = [judge.subjects(view) for view in views]
    if len(columns) == 1:
        return _hits(found[0], columns[0])
    left, right = found
    straight = left[:, columns[0]] + right[:, columns[1]]
    crossed = left[:, columns[1]] + right[:, columns[0]]
    orders = []
    for first, second in (columns, columns[::-1]):
        both = zip(_hits(left, first), _hits(right, second), strict=True)
        orders.append([(one + other) / 2 for one, other in both])
    top1, top5 = (torch.where(straight >= crossed, a, b) for a, b in zip(*orders, strict=True))
    return top1, top5


def _hits(probabilities: Tensor, column: int) -> tuple[Tensor, Tensor]:
    best = probabilities.topk(min(5, probabilities.shape[1]), 1).indices == column
    return best[:, 0].float(), best.any(1).float()


def _truth_scores(judge: Judge, artwork: Artwork, cell: Cell, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity and PSNR with the artist's picture (B,) each; of two subjects, in the better order."""
    orders = {cell.subjects, cell.subjects[::-1]}
    similarities, decibels = [], []
    for order in orders:
        truth = artwork.truth(replace(cell, subjects=order)).expand_as(pictures)
        similarities.append(judge.similarity(pictures, truth).cpu())
        decibels.append(aligned_psnr(pictures, truth))
    return torch.stack(similarities).amax(0), torch.stack(decibels).amax(0)
