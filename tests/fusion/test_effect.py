"""Effect curves: inversion, monotony, and half the effect on pictures that a curve was not fitted on."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import layer_table, random_adapter, tiny_pipeline

from loracomp.errors import FormatError, UsageError
from loracomp.fusion.effect import KNOTS, EffectCurve, distance
from loracomp.pipeline import measured
from loracomp.pipeline.measured import Measured, recall, remember
from loracomp.pipeline.profiling import measure, profile
from loracomp.pipeline.sampling import Setting, sample

distances = st.lists(st.floats(0.01, 5), min_size=len(KNOTS), max_size=len(KNOTS))


@given(distances, st.floats(0, 4))
def test_a_weight_has_the_effect_that_it_was_asked_for(values: list[float], effect: float) -> None:
    curve = EffectCurve.measured(KNOTS, values)
    assert curve.effect(curve.weight(effect)) == pytest.approx(effect, abs=1e-6)
    assert curve.weight(-effect) == -curve.weight(effect)
    assert curve.effect(1.0) == pytest.approx(1)
    assert curve.share(1.0) == pytest.approx(1, abs=1e-6) or curve.effect(curve.share(1.0)) == pytest.approx(
        1
    )


@given(distances)
def test_it_never_descends(values: list[float]) -> None:
    curve = EffectCurve.measured(KNOTS, values)
    effects = [curve.effect(weight / 50) for weight in range(100)]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(effects))


def test_a_line_stays_a_line() -> None:
    curve = EffectCurve.measured(KNOTS, [2 * knot for knot in KNOTS])
    for weight in (0.1, 0.3, 0.9, 1.4, 3.0, -0.7):
        assert curve.effect(weight) == pytest.approx(weight)
        assert curve.share(0.5, weight) == pytest.approx(weight / 2, abs=1e-9)


def test_curves_survive_json_and_nonsense_is_refused() -> None:
    curve = EffectCurve((0.0, 0.5, 1.0), (0.0, 0.8, 1.0))
    assert EffectCurve.from_parts(json.loads(json.dumps(curve.to_parts()))) == curve
    for weights, effects in (
        ((0.0, 1.0), (0.0,)),
        ((0.0, 1.0), (0.5, 1.0)),
        ((0.0, 1.0, 0.5), (0.0, 1.0, 2.0)),
    ):
        with pytest.raises(UsageError):
            EffectCurve(weights, effects)
    with pytest.raises(UsageError, match="changes nothing"):
        EffectCurve.measured(KNOTS, [0.0] * len(KNOTS))
    with pytest.raises(FormatError):
        EffectCurve.from_parts({"weights": [1]})


def test_half_the_effect_between_the_knots() -> None:
    pipe = tiny_pipeline("sd15")
    adapter = random_adapter(layer_table(pipe), ("to_v", "to_out.0", "conv1", "ff.net.2"), size=0.25)
    setting = Setting(("a house, {words}", "two cats"), seeds=2, steps=3)
    curve, prompts = measure(pipe, adapter, setting).effect, setting.prompts(adapter)
    assert curve is not None and curve.share(0.5) not in KNOTS
    plain = sample(pipe, setting, prompts, [adapter], 0.0).pictures
    effects = [
        float(distance(sample(pipe, setting, prompts, [adapter], weight).pictures, plain).mean())
        for weight in (1.0, curve.share(0.5))
    ]
    assert effects[1] / effects[0] == pytest.approx(0.5, rel=0.05)


def test_measurements_are_found_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACOMP_CACHE", str(tmp_path / "cache"))
    pipe = tiny_pipeline("sd15")
    adapter = random_adapter(layer_table(pipe), size=0.3, name="cat")
    folder, setting = tmp_path / "files", Setting(("{words}",), seeds=2, steps=2)
    runs: list[int] = []

    def found(**options: Any) -> Measured:
        def told(done: int, total: int) -> None:
            runs.append(done)

        return profile(pipe, adapter, folders=[folder], setting=setting, progress=told, **options)

    first = found()
    assert len(runs) == 3
    (file,) = folder.iterdir()
    assert file.name == f"cat.{adapter.digest[:16]}.measured.json"
    file.rename(folder / file.name.replace("cat", "tom"))
    assert found() == first and len(runs) == 3
    assert found(effect=True).effect is not None and len(list(folder.iterdir())) == 1
    assert recall(random_adapter(layer_table(pipe), seed=9), "StableDiffusionPipeline", [folder]) is None
    assert recall(adapter, "sdxl", [folder]) is None
    remember(first, "cat")
    assert recall(adapter, first.base) == first
    next(folder.iterdir()).write_text("{}")
    with pytest.raises(FormatError, match="measure again"):
        recall(adapter, first.base, [folder])


def test_a_folder_that_cannot_be_written_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACOMP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    known = Measured("ab" * 32, "glyph")
    assert remember(known, "x", tmp_path / "file").parent == measured.cache_folder()
    (tmp_path / "cache2").write_text("")
    monkeypatch.setenv("LORACOMP_CACHE", str(tmp_path / "cache2"))
    with pytest.raises(UsageError, match="LORACOMP_CACHE"):
        remember(known, "x")


def test_distance_is_the_root_mean_square() -> None:
    pictures = torch.rand(3, 3, 8, 8)
    assert distance(pictures, pictures - 0.25).tolist() == pytest.approx([0.25] * 3)
