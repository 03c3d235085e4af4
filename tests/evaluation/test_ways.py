"""Ways to compose, as the benchmark names them."""

from __future__ import annotations

import pytest
import torch
from tiny import layer_table, random_adapter, run, tiny_pipeline

from loracomp.bases import modules
from loracomp.errors import UnknownNameError, UsageError
from loracomp.evaluation.ways import way
from loracomp.fusion import Program
from loracomp.fusion.offline import MERGES
from loracomp.lowrank import distance, norm
from loracomp.pipeline import attach


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
    assert (found.program, weights) == (Program("merge"), [1.5 if MERGES[name].averages else 1.0])
    assert set(made.layers) == {path for one in pair for path in one.layers}
    assert found.prepare(pair[:1], [1.0]) == (pair[:1], [1.0])
    live, weights = way("merge").prepare(pair, [1.0, 0.5])
    assert (live, weights) == (pair, [1.0, 0.5])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("rank", [None, 3])
def test_an_average_is_judged_at_the_strength_of_the_sum(count: int, rank: int | None) -> None:
    """``fedsvd`` is then the update of ``concat``, or in few ranks the best of the sum: its row is theirs."""
    table = dict(list(dict(modules("glyph")).items())[:40])
    some = [
        random_adapter(table, ("to_q", "to_v"), 4, 6.0, seed=s, name=str(s), base="glyph")
        for s in range(count)
    ]
    weights = [1.0, 0.5, 0.25, 2.0, 0.75][:count]
    settings = f":rank={rank}" if rank else ""
    (average,), (strength,) = way(f"file-fedsvd{settings}").prepare(some, weights)
    peer = f"file-svd:fair_ranks=false,rank={rank}" if rank else "file-concat"
    (total,), (one,) = way(peer).prepare(some, weights)
    assert (strength, one) == (sum(weights), 1.0)
    for path, layer in total.layers.items():
        assert distance(average.layers[path].scaled(strength), layer) <= 1e-6 * norm(layer)


def test_averages_draw_what_the_sum_draws() -> None:
    pipe = tiny_pipeline("sd15")
    some = [random_adapter(layer_table(pipe), seed=seed, name=str(seed)) for seed in (1, 2, 3)]
    drawn = {}
    for name in ("merge", "file-concat", "file-fedsvd"):
        adapters, weights = way(name).prepare(some, [1.0, 0.8, 0.6])
        with attach(pipe, adapters, Program("merge", tuple(weights))):
            drawn[name] = run(pipe)
    assert not torch.allclose(drawn["merge"], run(pipe), atol=1e-2)
    torch.testing.assert_close(drawn["file-concat"], drawn["merge"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(drawn["file-fedsvd"], drawn["merge"], rtol=1e-4, atol=1e-4)


def test_a_rank_is_kept() -> None:
    table = dict(list(dict(modules("glyph")).items())[:40])
    pair = [random_adapter(table, ("to_q",), seed=s, name=str(s), base="glyph") for s in (1, 2)]
    (made,), _ = way("file-svd:rank=3").prepare(pair, [1.0, 1.0])
    assert {layer.rank for layer in made.layers.values()} == {3}
    (exact,), _ = way("file-concat").prepare(pair, [1.0, 0.5])
    for path, layer in exact.layers.items():
        total = sum(w * one.layers[path].delta() for one, w in zip(pair, (1.0, 0.5), strict=True))
        torch.testing.assert_close(layer.delta(), total)
