"""Every dialect of every base is read to the ΔW that was written, and round trips keep it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from formats.generators import FILES, write

from loracomp.bases import modules
from loracomp.formats import diagnose, load, save
from loracomp.lowrank import LowRank, concatenate, norm, singular_values


def distance(first: LowRank, second: LowRank) -> float:
    pair = [first.to(dtype=torch.float64), second.to(dtype=torch.float64).scaled(-1)]
    return float(singular_values(concatenate(pair)).norm())


@pytest.mark.parametrize("name", FILES)
def test_the_update_is_the_one_that_was_written(name: str, tmp_path: Path) -> None:
    kind = FILES[name]
    path = tmp_path / "a.safetensors"
    known = write(kind, dict(modules(kind.base)), path)
    adapter = load(path)
    assert adapter.base == kind.base and adapter.layers.keys() == known.keys()
    for layer, expected in known.items():
        truth = LowRank(expected.down, expected.up, expected.scale * expected.down.shape[0])
        assert distance(adapter.layers[layer], truth) <= 1e-6 * norm(truth), layer
    diagnosis = diagnose(path)
    assert diagnosis.complete and diagnosis.report is not None
    assert diagnosis.report.dialect == kind.dialect
    strengths = {row.path: row.scale for row in diagnosis.report.rows}
    assert strengths == pytest.approx({layer: part.scale for layer, part in known.items()})
    again = load(save(adapter, tmp_path / "b.safetensors"))
    for layer, update in adapter.layers.items():
        assert distance(again.layers[layer], update) <= 1e-6 * norm(update), layer
