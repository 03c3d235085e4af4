"""Measuring adapters by sampling: what they do to the spectrum, and how their effect grows with weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion.effect import KNOTS, EffectCurve, distance
from loracomp.fusion.spectra import frequency_profile
from loracomp.pipeline.layers import base_of
from loracomp.pipeline.measured import Measured, recall, remember
from loracomp.pipeline.sampling import Progress, Setting, sample


def profile(
    pipe: Any,
    adapter: Adapter,
    *,
    effect: bool = False,
    folders: Iterable[Path] = (),
    anew: bool = False,
    setting: Setting | None = None,
    progress: Progress = lambda done, total: None,
) -> Measured:
    """What is known of an adapter, measured where it is not, and remembered beside its file.

    Args:
        pipe: A pipeline of the adapter's base, without adapters.
        adapter: What to measure.
        effect: Whether the effect curve is wanted too.
        folders: Where sidecars may lie; the first one takes a new sidecar.
        anew: Measure whatever is known.
        setting: Prompts, seeds, steps and guidance.
        progress: Called with (runs done, runs in all).

    Raises:
        UsageError: The adapter changes nothing, or fewer than two pictures are asked for.
        FormatError: A damaged sidecar.
    """
    places = tuple(folders)
    known = None if anew else recall(adapter, base_of(pipe), places)
    if known and known.frequency and (known.effect or not effect):
        return known
    found = measure(pipe, adapter, setting or Setting(), effect=effect, progress=progress)
    remember(found, adapter.name, places[0] if places else None)
    return found


def measure(
    pipe: Any,
    adapter: Adapter,
    setting: Setting,
    *,
    effect: bool = True,
    progress: Progress = lambda done, total: None,
) -> Measured:
    """Measures an adapter; arguments as :func:`profile`."""
    prompts = setting.prompts(adapter)
    if len(prompts) * setting.seeds < 2:
        raise UsageError("one picture has no standard error; measure on two prompts or seeds at least")
    knots = KNOTS if effect else (1.0,)
    progress(0, len(knots) + 1)
    plain = sample(pipe, setting, prompts, [adapter], 0.0)
    distances, frequency = [], None
    for done, weight in enumerate(knots):
        progress(done + 1, len(knots) + 1)
        run = sample(pipe, setting, prompts, [adapter], weight)
        distances.append(float(distance(run.pictures, plain.pictures).mean()))
        if weight == 1:
            frequency = frequency_profile(run.clean, plain.clean, run.pictures, plain.pictures)
    progress(len(knots) + 1, len(knots) + 1)
    curve = EffectCurve.measured(knots, distances) if effect else None
    facts = {name: value for name, value in asdict(setting).items() if name != "scenes"}
    facts |= {"prompts": list(prompts)}
    return Measured(adapter.digest, base_of(pipe), frequency, curve, facts)
