"""Measurements of an encoder: texts, pictures and adapters as queries over a gallery of all adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loracomp.evaluation.ranking import auroc_interval, hubness, ndcg, plain, ranks, summary
from loracomp.evaluation.statistics import Interval, interval
from loracomp.retrieval.encoder import Towers
from loracomp.retrieval.towers import Batch
from loracomp.training.encoder.data import Material

_ROWS = 256
SHARES = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
"""Shares of what weights say that are tried."""


def adapter_vectors(towers: Towers, rows: Batch) -> Tensor:
    """Unit vectors of all adapters, shape (n, 512)."""
    return towers.joined(*_readings(towers, rows), rows).float()


@torch.no_grad()
def _readings(towers: Towers, rows: Batch) -> tuple[Tensor | None, Tensor | None]:
    """Both readings of all adapters."""
    parts = []
    for start in range(0, len(rows), _ROWS):
        places = torch.arange(start, min(start + _ROWS, len(rows)), device=rows.present.device)
        parts.append(towers.readings(rows[places]))
    found, read = zip(*parts, strict=True)
    return (None if found[0] is None else torch.cat(found), None if read[0] is None else torch.cat(read))


def text_to_adapter(towers: Towers, material: Material, split: str) -> dict[str, Interval]:
    """Recall and MRR of all paraphrases of concepts that only a split has, over all adapters."""
    return _ranked(towers, material, split, adapter_vectors(towers, material.rows))


@torch.no_grad()
def _ranked(towers: Towers, material: Material, split: str, gallery: Tensor) -> dict[str, Interval]:
    scores = text_scores(towers, material, split, gallery)
    relevant = scores.concepts[:, None] == material.concepts
    return summary(ranks(scores.values.cpu(), relevant.cpu()), scores.concepts.cpu())


def balance(towers: Towers, material: Material, split: str = "validation") -> dict[str, Interval]:
    """Sets the share of weights beside drawings that finds most; what :func:`text_to_adapter` then gives."""
    found, read = _readings(towers, material.rows)
    if found is None or read is None:
        return _ranked(towers, material, split, towers.joined(found, read, material.rows))
    results = {}
    for share in SHARES:
        towers.share.fill_(share)
        results[share] = _ranked(towers, material, split, towers.joined(found, read, material.rows))
    best = max(results, key=lambda share: results[share]["recall@10"].mean + results[share]["mrr"].mean)
    towers.share.fill_(best)
    return results[best]


def _of(owners: Tensor, concepts: Tensor) -> Tensor:
    """Positions of what belongs to some concepts."""
    return torch.isin(owners, concepts.to(owners.device)).nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of queries over the gallery, whatever made them.

    Attributes:
        values: Shape (queries, adapters).
        concepts: Concept of each query, shape (queries,).
        itself: Position in the gallery of a query that is an adapter, shape (queries,); None for others.
    """

    values: Tensor
    concepts: Tensor
    itself: Tensor | None = None


def judged(scores: Scores, material: Material) -> dict[str, Any]:
    """All numbers of one ranking as JSON values."""
    relevant = scores.concepts[:, None] == material.concepts
    allowed = torch.ones_like(relevant)
    if scores.itself is not None:
        allowed[torch.arange(len(allowed)), scores.itself] = False
    found = ranks(scores.values, relevant, allowed)
    values = scores.values.double().masked_fill(~allowed, float("-inf"))
    gains = (relevant & allowed).double()
    numbers = summary(found, scores.concepts) | {"ndcg@10": interval(ndcg(values, gains), scores.concepts)}
    out: dict[str, Any] = plain(numbers)
    out["abstention_auroc"] = plain({"auroc": abstention(scores, relevant, allowed)})["auroc"]
    out["hubness"] = hubness(scores.values)
    out["queries"] = len(found)
    return out


def abstention(scores: Scores, relevant: Tensor, allowed: Tensor) -> Interval:
    """AUROC of the best score, with the concept's adapters in the gallery against without them."""
    values = scores.values.double()
    low = float("-inf")
    there = values.masked_fill(~allowed, low).amax(1)
    gone = values.masked_fill(~allowed | relevant, low).amax(1)
    kept = (relevant & allowed).any(1) & gone.isfinite()
    return auroc_interval(there[kept], gone[kept], scores.concepts[kept])


@torch.no_grad()
def text_scores(towers: Towers, material: Material, split: str, gallery: Tensor) -> Scores:
    """Scores of paraphrases."""
    wanted = _of(material.spoken, material.unseen(split))
    return Scores(towers.text(material.states[wanted]) @ gallery.T, material.spoken[wanted])


@torch.no_grad()
def image_scores(towers: Towers, material: Material, split: str, gallery: Tensor) -> Scores:
    """Scores of pictures."""
    wanted = _of(material.shown, material.unseen(split))
    vectors = [towers.images(material.pictures[part].float() / 255) for part in wanted.split(_ROWS)]
    found = torch.cat(vectors) if vectors else torch.zeros(0, gallery.shape[1])
    return Scores(found @ gallery.T, material.shown[wanted])


def adapter_scores(material: Material, split: str, gallery: Tensor) -> Scores:
    """Scores of adapters among themselves; relevant are others of the same concept."""
    concepts = material.unseen(split)
    wanted = _of(material.concepts, concepts)
    return Scores(gallery[wanted] @ gallery.T, material.concepts[wanted], wanted)


def report(
    towers: Towers, material: Material, split: str = "test", thinned: Batch | None = None
) -> dict[str, Any]:
    """Every measurement of an encoder on concepts that only a split has.

    Args:
        towers: The encoder.
        material: The corpus.
        split: ``validation`` or ``test``.
        thinned: The gallery with half of each adapter's layers missing.
    """
    gallery = adapter_vectors(towers, material.rows)
    out = {
        "text": judged(text_scores(towers, material, split, gallery), material),
        "adapter": judged(adapter_scores(material, split, gallery), material),
    }
    if len(_of(material.shown, material.unseen(split))):
        out["image"] = judged(image_scores(towers, material, split, gallery), material)
    if thinned is not None:
        poorer = adapter_vectors(towers, thinned)
        out["text, half of the layers missing"] = judged(
            text_scores(towers, material, split, poorer), material
        )
    return out


def calibrate(towers: Towers, material: Material, split: str = "validation") -> tuple[float, float]:
    """Slope and offset of the probability that a text's best match is one, by logistic regression.

    Positives are best cosines with the concept's adapters in the gallery, negatives without them; equal
    numbers of both, a weak pull towards no slope.
    """
    gallery = adapter_vectors(towers, material.rows)
    scores = text_scores(towers, material, split, gallery)
    relevant = scores.concepts[:, None] == material.concepts
    there = scores.values.amax(1)
    gone = scores.values.masked_fill(relevant, float("-inf")).amax(1)
    kept = relevant.any(1) & gone.isfinite()
    values = torch.cat([there[kept], gone[kept]]).double()
    if not len(values):
        return 20.0, -8.0
    labels = torch.cat([torch.ones(int(kept.sum())), torch.zeros(int(kept.sum()))]).double()
    middle, spread = values.mean(), values.std().clamp_min(1e-6)
    weights = torch.zeros(2, dtype=torch.float64)
    inputs = torch.stack([(values - middle) / spread, torch.ones_like(values)], 1)
    for _ in range(50):
        chance = torch.sigmoid(inputs @ weights)
        pull = torch.tensor([1e-2, 0.0], dtype=torch.float64) * len(values)
        slope = inputs.T @ (chance - labels) + pull * weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs
        weights = weights - torch.linalg.solve(curve + torch.diag(pull + 1e-6), slope)
    return float(weights[0] / spread), float(weights[1] - weights[0] * middle / spread)
