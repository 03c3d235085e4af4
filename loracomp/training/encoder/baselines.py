"""Rankings that need no training, to hold the encoder against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.lowrank import LowRank
from loracomp.retrieval import hearing
from loracomp.retrieval.bank import ProbeBank
from loracomp.retrieval.encoding import Facts
from loracomp.retrieval.features import Features
from loracomp.retrieval.words import WordIndex
from loracomp.training.encoder.data import Material
from loracomp.training.encoder.evaluate import Scores, judged


def baselines(
    material: Material,
    features: Sequence[Features],
    facts: Sequence[Facts],
    texts: Sequence[str],
    bank: ProbeBank,
    factors: Sequence[dict[int, LowRank]] | None = None,
    split: str = "test",
) -> dict[str, dict[str, Any]]:
    """Measurements of chance, headers, text probes, ΔW, raw factors and spectra.

    Args:
        material: The corpus, on the CPU.
        features: Features of its adapters.
        facts: What their headers claim.
        texts: All paraphrases, in the order of ``material.spoken``.
        bank: The base's text probes.
        factors: Factors of the adapters; raw factors are left out without.
        split: ``validation`` or ``test``.
    """
    concepts = material.unseen(split)
    wanted = torch.isin(material.spoken, concepts).nonzero()[:, 0]
    owners = material.spoken[wanted]
    queries = [texts[place] for place in wanted.tolist()]
    source = torch.Generator().manual_seed(0)
    by_text = {
        "chance": torch.rand(len(queries), len(features), generator=source),
        "headers": _words(queries, facts),
        "text probes": _hearing(material.states[wanted].mean(), features, bank),
        "pull": _pull(material.states[wanted].mean(), features),
    }
    out = {f"text: {name}": judged(Scores(v, owners), material) for name, v in by_text.items()}
    others = torch.isin(material.concepts, concepts).nonzero()[:, 0]
    by_adapter = {
        "ΔW cosine (sketched)": torch.stack([row.whole for row in features]),
        "spectra": torch.stack([row.spectra.flatten() for row in features]),
    }
    if factors is not None:
        by_adapter["raw factors"] = raw_factors(factors)
    for name, values in by_adapter.items():
        unit = F.normalize(values, dim=1)
        scores = Scores(unit[others] @ unit.T, material.concepts[others], others)
        out[f"adapter: {name}"] = judged(scores, material)
    return out


def _words(queries: Sequence[str], facts: Sequence[Facts]) -> Tensor:
    index = WordIndex((str(place), f"{row.name} {row.words}") for place, row in enumerate(facts))
    scores = torch.zeros(len(queries), len(facts))
    for row, query in enumerate(queries):
        for place, score in index.search(query, len(facts)):
            scores[row, int(place)] = score
    return scores


def _hearing(states: Tensor, features: Sequence[Features], bank: ProbeBank) -> Tensor:
    scores = torch.full((len(states), len(features)), -1e3)
    for place, row in enumerate(features):
        if row.text is not None:
            mean, spread = hearing.bank_responses(row.text, bank)
            found = hearing.scores(
                hearing.directions(row.text)[None], torch.tensor([mean]), torch.tensor([spread]), states
            )
            scores[:, place] = found[:, 0]
    return scores


def _pull(states: Tensor, features: Sequence[Features]) -> Tensor:
    """Cosine between texts and pulls, without the part that all adapters share."""
    width = states.shape[1]
    pulls = torch.stack([row.text.pull.sum(0) if row.text else torch.zeros(width) for row in features])
    return F.normalize(states, dim=1) @ F.normalize(pulls - pulls.mean(0), dim=1).T


def raw_factors(adapters: Sequence[dict[int, LowRank]], numbers: int = 2048) -> Tensor:
    """Factors as they lie in the files, unscaled and in their own gauge, as rows for cosines.

    The entries of all layers side by side (arXiv:2412.12048 does so for adapters of one recipe), brought
    to a common length by adding them up with random signs into ``numbers`` places.
    """
    rows = torch.zeros(len(adapters), numbers)
    for number, layers in enumerate(adapters):
        for place in sorted(layers):
            layer = layers[place]
            for side, factor in enumerate((layer.down.flatten(1), layer.up.flatten(1).T)):
                values = factor.float().cpu().flatten()
                source = torch.Generator().manual_seed(2 * place + side)
                target = torch.randint(0, numbers, (len(values),), generator=source)
                signs = torch.randint(0, 2, (len(values),), generator=source).float() * 2 - 1
                rows[number].index_add_(0, target, values * signs)
    return rows
