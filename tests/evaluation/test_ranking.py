"""Figures of rankings against counting by hand."""

from __future__ import annotations

import pytest
import torch

from loracomp.evaluation.ranking import auroc, auroc_interval, hubness, ndcg, ranks, summary


def test_ranks_count_the_items_above_the_best_relevant_one_and_ties_against_it() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [0.4, 0.3, 0.2, 0.1]])
    relevant = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    found = ranks(scores, relevant)
    assert found[:2].tolist() == [3.0, 4.0]
    assert bool(found[2].isnan())
    allowed = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    assert ranks(scores, relevant, allowed)[:2].tolist() == [2.0, 3.0]


def test_summary_has_shares_and_intervals_over_concepts() -> None:
    found = torch.tensor([1.0, 2.0, 20.0, float("nan")])
    numbers = summary(found, torch.tensor([0, 0, 1, 2]))
    assert numbers["recall@1"].mean == pytest.approx(1 / 3)
    assert numbers["recall@10"].mean == pytest.approx(2 / 3)
    assert numbers["mrr"].mean == pytest.approx((1 + 1 / 2 + 1 / 20) / 3)
    assert numbers["mrr"].count == 3
    assert numbers["recall@10"].low <= 2 / 3 <= numbers["recall@10"].high


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    source = torch.Generator().manual_seed(0)
    positive = torch.randint(0, 9, (40,), generator=source).float()
    negative = torch.randint(0, 7, (30,), generator=source).float()
    pairs = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
    assert auroc(positive, negative) == pytest.approx(float(pairs.mean()))
    assert torch.tensor(auroc(positive[:0], negative)).isnan()
    found = auroc_interval(positive[:30], negative, torch.arange(30) // 3)
    assert found.low < found.mean < found.high


def test_ndcg_and_hubs() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    gains = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    exact, backwards = ndcg(scores, gains, 3).tolist()
    assert exact == pytest.approx(1.0)
    logs = torch.tensor([2.0, 3.0, 4.0]).log2()
    assert backwards == pytest.approx(float((1 / logs[1] + 2 / logs[2]) / (2 / logs[0] + 1 / logs[1])))
    even = torch.eye(12)
    hub = even.clone()
    hub[:, 0] = 2.0
    assert hubness(even, 1) == 0.0
    assert hubness(hub, 1) > 2.0
