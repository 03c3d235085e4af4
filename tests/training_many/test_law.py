"""The law: every result of many at once is that of the trainer of single adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import alone, distance, loaded
from tiny import KINDS, run, tiny_pipeline

from loracomp.training.many.run import Ways, train_many

Write = Callable[..., Path]

NEAR = 1e-4
"""AdamW divides by a gradient's own size, so the last bits of a tiny gradient become visible."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_result_is_that_of_a_run_alone(kind: str, write: Write, tmp_path: Path) -> None:
    """Ranks, alphas, targets, rates, batches, steps and options are each one's own; two seats take turns."""
    convolutions = ["conv1", "conv2", "to_q", "proj_in"] if kind in ("sd15", "sdxl") else ["to_q"]
    pipe = tiny_pipeline(kind)
    manifest = write(
        {"steps": 3, "batch": 3},
        {"rank": 4, "alpha": 2.0, "lr": 5e-3, "weight_decay": 0.1, "batch": 4, "steps": 2},
        {"targets": ["to_q", "to_v"], "batch": 3, "clip": 0.01, "betas": [0.8, 0.95], "steps": 2},
        {
            "rank": 3,
            "schedule": "constant",
            "noise_offset": 0.1,
            "batch": 4,
            "steps": 3,
            "targets": convolutions,
        },
        base=kind,
    )
    before = run(pipe)
    report = train_many(manifest, tmp_path / "many", Ways(at_once=3), pipe=pipe)
    assert report["done"] == 4
    assert report["at_once"] == 2
    assert (run(pipe) == before).all()
    found, expected = loaded(tmp_path / "many", pipe), alone(manifest, tmp_path / "alone", pipe)
    for name, adapter in expected.items():
        assert distance(found[name], adapter) < NEAR, name
        assert found[name].metadata["loracomp.config"] == adapter.metadata["loracomp.config"]
        assert float(report["adapters"][name]["loss"]) == pytest.approx(
            float(adapter.metadata["ss_loss"]), rel=1e-4
        )


OPTIONS: tuple[dict[str, Any], ...] = (
    {"train_text_encoder": True, "flip": True},
    {"accumulation": 2, "gradient_checkpointing": True, "min_snr_gamma": 5.0, "terminal_share": 0.5},
    {
        "kind": "accelerator", "objective": "distillation", "teacher_guidance": 2.0, "teacher_steps": 2,
        "student_steps": [2, 3],
    },
)  # fmt: skip


def test_options_that_batches_have_in_common(write: Write, tmp_path: Path, sd15: Any) -> None:
    """Each set of options has its own batches; its two adapters have different data and seeds."""
    rows = [{**options, "steps": 2, "seed": 20 + seed} for options in OPTIONS for seed in range(2)]
    manifest = write(*rows)
    assert train_many(manifest, tmp_path / "many", pipe=sd15)["done"] == len(rows)
    found, expected = loaded(tmp_path / "many", sd15), alone(manifest, tmp_path / "alone", sd15)
    for name, adapter in expected.items():
        assert distance(found[name], adapter) < NEAR, name


def test_the_number_at_once_changes_nothing(write: Write, tmp_path: Path, sd15: Any) -> None:
    manifest = write(*({"steps": 2 + number % 2} for number in range(3)))
    results = []
    for at_once in (1, 3):
        train_many(manifest, tmp_path / str(at_once), Ways(at_once=at_once), pipe=sd15)
        results.append(loaded(tmp_path / str(at_once), sd15))
    one, three = results
    assert len(one) == 3
    assert all(distance(one[name], three[name]) < NEAR for name in one)


def test_a_manifest_of_equal_rows_gives_equal_adapters_whatever_their_seat(
    write: Write, tmp_path: Path, sd15: Any
) -> None:
    manifest = write(*({"seed": seed, "data": "one", "steps": 2} for seed in (3, 3, 4)))
    train_many(manifest, tmp_path / "many", Ways(at_once=3), pipe=sd15)
    found = loaded(tmp_path / "many", sd15)
    assert distance(found["a0"], found["a1"]) < NEAR
    assert distance(found["a0"], found["a2"]) > 0.1
