"""Ways to compose, as the benchmark names them."""

from __future__ import annotations

import pytest
import torch
from tiny import random_adapter

from loracomp.bases import modules
from loracomp.errors import UnknownNameError, UsageError
from loracomp.evaluation.ways import way
from loracomp.fusion import Program
from loracomp.fusion.offline import MERGES


def test_methods_may_have_options() -> None:
    assert way("merge").program == Program("merge")
    assert way("switch:period=0.1").program == Program("switch", (), {"period": 0.1})
    roles = way('roles:roles=["subject","style"],handover=0.3').program
    assert roles == Program("roles", (), {"roles": ["subject", "style"], "handover": 0.3})
    for wrong in ("switch:period", "switch:periods=1", "switch:period=2", "file-svd:fair=1"):
        with pytest.raises(UsageError):
            way(wrong)
    for wrong in ("swich", "file-merge"):
        with pytest.raises(UnknownNameError):
            way(wrong)


@pytest.mark.parametrize("name", MERGES)
def test_files_are_merged_before_they_are_attached(name: str) -> None:
    table = dict(list(dict(modules("glyph")).items())[:40])
    pair = [random_adapter(table, ("to_q", "to_v"), seed=s, name=str(s), base="glyph") for s in (1, 2)]
    found = way(f"file-{name}")
    (made,), weights = found.prepare(pair, [1.0, 0.5])
    assert (found.program, weights) == (Program("merge"), [1.0])
    assert set(made.layers) == {path for one in pair for path in one.layers}
    assert found.prepare(pair[:1], [1.0]) == (pair[:1], [1.0])
    live, weights = way("merge").prepare(pair, [1.0, 0.5])
    assert (live, weights) == (pair, [1.0, 0.5])


def test_a_rank_is_kept() -> None:
    table = dict(list(dict(modules("glyph")).items())[:40])
    pair = [random_adapter(table, ("to_q",), seed=s, name=str(s), base="glyph") for s in (1, 2)]
    (made,), _ = way("file-svd:rank=3").prepare(pair, [1.0, 1.0])
    assert {layer.rank for layer in made.layers.values()} == {3}
    (exact,), _ = way("file-concat").prepare(pair, [1.0, 0.5])
    for path, layer in exact.layers.items():
        total = sum(w * one.layers[path].delta() for one, w in zip(pair, (1.0, 0.5), strict=True))
        torch.testing.assert_close(layer.delta(), total)
