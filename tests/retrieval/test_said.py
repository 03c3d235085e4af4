"""Texts token by token: padding changes nothing, means are those of the tokens that are there."""

from __future__ import annotations

import torch

from loracomp.formats import shipped_folder
from loracomp.retrieval.bank import text_states, token_states
from loracomp.retrieval.said import Said, of_all
from loracomp.retrieval.towers import TextTower

TEXTS = ("a cat", "one small red ship beside two very old trees", "owl")


def made(length: int, count: int = 3) -> Said:
    """Random states of which each text has fewer than ``length``."""
    states = torch.randn(count, length, 8, generator=torch.Generator().manual_seed(length))
    return Said(states, torch.arange(length)[None] < torch.arange(1, count + 1)[:, None])


def test_what_is_joined_keeps_its_means() -> None:
    short, long = made(3), made(6)
    both = Said.join([short, long])
    assert both.states.shape == (6, 6, 8)
    assert torch.allclose(both.mean(), torch.cat([short.mean(), long.mean()]))
    assert torch.allclose(short.mean()[1], short.states[1, :2].mean(0))
    assert torch.allclose(short.minus(torch.ones(8)).mean(), short.mean() - 1)
    assert short[1:].half().states.dtype == torch.float16


def test_glyph_reads_a_text_alone_as_among_longer_ones() -> None:
    folder = shipped_folder("glyph")
    assert folder is not None
    speak = token_states("glyph", folder)
    together, alone = speak(TEXTS), speak(TEXTS[:1])
    count = int(alone.there.sum())
    assert torch.allclose(together.states[0, :count], alone.states[0, :count], atol=1e-4)
    assert int(together.there[0].sum()) == count
    assert torch.allclose(text_states("glyph", folder)(TEXTS), together.mean())
    ends = text_states("glyph", folder, end=True)(TEXTS[:1])
    assert torch.equal(ends[0], alone.states[0, count - 1])
    assert torch.allclose(of_all(speak, TEXTS).mean(), together.mean())


def test_the_text_tower_does_not_see_padding() -> None:
    tower = TextTower(8).eval()
    said = made(3)
    padded = Said.join([said, made(9, 1)])[:3]
    padded.states[:, 3:] = 7.0
    assert torch.allclose(tower(said), tower(padded), atol=1e-6)
    assert torch.allclose(tower(said).norm(dim=1), torch.ones(3))
