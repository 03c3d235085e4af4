"""CMLoRA's table: shares, order, decay, refresh steps; and that the cache renews exactly what it lists."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import layer_table, random_adapter, run, tiny_pipeline

from loracomp.errors import UsageError
from loracomp.fusion import CachePlan, Program
from loracomp.fusion.cmlora import leading_share, refresh_marks
from loracomp.pipeline import attach, denoiser_of

SHARES = [[0.6, 0.4], [0.4, 0.6], [0.4, 0.6]]
BANDS = st.lists(st.sampled_from(["high", "low", "unknown"]), min_size=1, max_size=5)


def table(bands: list[str], steps: int, **options: Any) -> Any:
    return Program("cmlora", (1.0,) * len(bands), {"bands": bands, **options}).table(steps)


@pytest.mark.parametrize(("count", "share"), [(1, 1), (2, 0.6), (3, 0.5556), (4, 0.5385), (5, 0.5294)])
def test_the_leading_share_is_the_papers(count: int, share: float) -> None:
    assert leading_share(count) == pytest.approx(share, abs=1e-4)
    assert leading_share(count, 99.0) == pytest.approx(1 / count)


def test_marks_are_the_papers_at_its_own_length() -> None:
    marks = refresh_marks(220, 2, 3)
    assert int(marks.sum()) == 92
    assert marks[:84:2].all() and not marks[1:82:2].any()


@given(BANDS, st.integers(1, 80), st.floats(0, 0.9))
def test_one_leads_and_shares_never_fall_below_equal(bands: list[str], steps: int, decay: float) -> None:
    mix = table(bands, steps, decay=decay).mix
    torch.testing.assert_close(mix.sum(1), torch.ones(steps))
    assert bool((mix.max(1).values >= 1 / len(bands) - 1e-6).all())
    assert bool((mix.max(1).values <= leading_share(len(bands)) + 1e-6).all())


def test_the_leading_share_decays() -> None:
    peaks = table(["high"] * 3, 30).mix.max(1).values
    assert float(peaks[0]) == pytest.approx(leading_share(3))
    assert bool((peaks.diff() <= 1e-6).all()) and float(peaks[-1]) < float(peaks[0]) - 0.05
    flat = table(["high"] * 3, 30, decay=0).mix.max(1).values
    assert float(flat.min()) == pytest.approx(float(flat.max()))


@given(BANDS.filter(lambda bands: len(bands) > 1), st.integers(8, 60))
def test_low_frequencies_lead_late_only(bands: list[str], steps: int) -> None:
    leaders = table(bands, steps, switch_at=0.5, decay=0).mix.argmax(1)
    low = [index for index, band in enumerate(bands) if band == "low"]
    first = leaders[: steps // 2]
    assert len(low) == len(bands) or not torch.isin(first, torch.tensor(low)).any()
    turns = [step for step in refresh_marks(steps, 2, 3).nonzero().flatten().tolist() if step >= steps / 2]
    assert not low or not turns or int(leaders[turns[0]]) == low[0]


@given(st.integers(2, 5), st.integers(1, 80), st.floats(0.01, 1))
def test_refreshes_are_the_turns_and_what_grew_stale(count: int, steps: int, staleness: float) -> None:
    found = table(["high"] * count, steps, staleness=staleness, decay=0)
    leaders, oldest = found.mix.argmax(1).tolist(), max(1, round(staleness * steps))
    assert bool(found.refresh[0].all())
    for branch in range(count):
        times = found.refresh[:, branch].nonzero().flatten().tolist()
        assert all(later - earlier <= oldest for earlier, later in pairwise([*times, steps]))
        turns = [k for k in refresh_marks(steps, 2, 3).nonzero().flatten().tolist() if leaders[k] == branch]
        early = [k for k in times if k not in turns]
        assert set(turns) <= set(times)
        assert all(k == 0 or k - max(t for t in times if t < k) == oldest for k in early)


def test_the_cache_renews_exactly_the_listed_rows() -> None:
    pipe = tiny_pipeline("sd15")
    adapters = [random_adapter(layer_table(pipe), seed=n, size=0.2) for n in range(3)]
    options = {"bands": ["high", "low", "high"], "staleness": 0.5}
    program = Program("cmlora", (1.0,) * 3, options, cache=CachePlan())
    rows: list[int] = []
    middle = denoiser_of(pipe)[1].get_submodule("mid_block.resnets.0.conv1")
    handle = middle.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    with attach(pipe, adapters, program):
        cached = run(pipe, num_inference_steps=10)
    handle.remove()
    refresh = program.table(10).refresh
    assert refresh is not None
    # Each branch has a row in both halves of guidance; a step without any refresh skips the block.
    assert rows == [2 * int(step.sum()) for step in refresh if bool(step.any())]
    assert sum(rows) < 2 * 3 * 10
    with attach(pipe, adapters, Program("cmlora", (1.0,) * 3, options)):
        plain = run(pipe, num_inference_steps=10)
    assert not torch.equal(cached, plain)


def test_its_prediction_is_the_weighted_mean_of_separate_ones(pipe: Any) -> None:
    adapters = [random_adapter(layer_table(pipe), seed=n, size=0.2) for n in range(2)]
    program = Program("cmlora", (1.0, 1.0), {"decay": 0.0})
    torch.testing.assert_close(program.table(3).mix, torch.tensor(SHARES))
    with attach(pipe, adapters, program):
        ours = run(pipe, num_inference_steps=3)
    with attach(pipe, adapters, Program("composite", (1.0, 1.0), {"shares": SHARES})):
        mean = run(pipe, num_inference_steps=3)
    torch.testing.assert_close(ours, mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"bands": ["high"]},
        {"bands": ["high", "loud"]},
        {"switch_at": 2},
        {"decay": 1},
        {"staleness": 0},
        {"intervals": [2]},
        {"intervals": [0, 3]},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Program("cmlora", (1.0, 1.0), options).table(4)
