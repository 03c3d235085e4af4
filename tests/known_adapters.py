"""Adapters for glyph made of random factors, and a bank of text probes without a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from tiny import random_adapter
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.bases import modules
from loracomp.formats import shipped_folder
from loracomp.retrieval.bank import ProbeBank, make_bank
from loracomp.retrieval.features import Features
from loracomp.retrieval.said import Said

CROSS = ("attn2.to_k", "attn2.to_v")
SOME = (*CROSS, "attn1.to_q", "ff.net.2", "mid_block.resnets.0.conv1")


def spoken(texts: Sequence[str]) -> Tensor:
    """States that depend on the words alone, so that no text encoder is needed: sums over words."""
    rows = []
    for text in texts:
        total = torch.ones(256)
        for word in text.split():
            source = torch.Generator().manual_seed(sum(word.encode()) * 7919 + len(word))
            total += torch.randn(256, generator=source)
        rows.append(total)
    return torch.stack(rows)


def tokens(texts: Sequence[str]) -> Said:
    """:func:`spoken` as the state of one token."""
    states = spoken(texts)[:, None]
    return Said(states, torch.ones(states.shape[:2], dtype=torch.bool))


@cache
def bank() -> ProbeBank:
    """glyph's probes with :func:`spoken` in place of its text encoder."""
    folder = shipped_folder("glyph")
    assert folder is not None
    return make_bank("glyph", folder, spoken)


def adapter(seed: int = 0, rank: int = 4, suffixes: tuple[str, ...] = SOME, name: str = "") -> Adapter:
    """A glyph adapter with random factors."""
    return random_adapter(
        dict(modules("glyph")), suffixes, rank, 2.0, seed, name or f"random{seed}", "glyph", 0.05
    )


def flat(found: Features) -> Tensor:
    """All features of an adapter in one row, blocks at comparable size, float64."""
    parts = [found.spectra, found.sketch.float(), found.out.float(), found.into.float(), found.whole[None]]
    if found.text is not None:
        parts += [found.text.energy, found.text.listen, found.text.pull, found.text.echo]
    scaled = [part.double().flatten() / part.double().norm().clamp_min(1e-12) for part in parts]
    return torch.cat(scaled)


def alike(first: Features, second: Features) -> float:
    """Cosine of two adapters' features."""
    return float(torch.nn.functional.cosine_similarity(flat(first), flat(second), dim=0))
