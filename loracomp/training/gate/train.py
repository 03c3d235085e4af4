"""A gate's training from corpus to file: what ``train gate`` calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loracomp.fusion.gated import GateWeights
from loracomp.pipeline import base_of, denoiser_of, layers_of
from loracomp.training.gate.bank import Bench
from loracomp.training.gate.draws import Draws
from loracomp.training.gate.manifest import record_of
from loracomp.training.gate.material import opened, pictures, read_corpus
from loracomp.training.gate.objective import GateVectors, Objective
from loracomp.training.gate.run import Run, Side
from loracomp.training.gate.settings import Settings
from loracomp.training.loop import Report


def train_gate(
    corpus: Path,
    out: Path,
    settings: Settings,
    *,
    pipe: Any,
    artwork: Path,
    report: Report,
    stop: Callable[[], bool],
    graph: bool = False,
) -> dict[str, Any]:
    """Trains a gate on the adapters of a corpus and writes it to ``out``.

    The run of an interrupted command goes on with the same command.

    Args:
        corpus: Folder that ``python -m loracomp.training.corpus`` made.
        out: File to write.
        settings: How.
        pipe: The base in float32; on a GPU its denoiser computes in bfloat16 from here on.
        artwork: Folder of ``icons.json.xz``, for the scenes that the corpus's folder does not hold yet.
        report: Told of what happens.
        stop: Asked after each step; True saves the state and ends the run.
        graph: Record steps as CUDA graphs.

    Returns:
        A summary: steps, seconds, errors on unseen concepts.

    Raises:
        TrainingError: No corpus, no artwork, or concepts that GlyphBench asks for.
        InterruptedManyError: It was asked to stop; the state is saved.
    """
    base, begun = base_of(pipe), time.monotonic()
    name, model = _frozen(pipe)
    parts = [part for part in read_corpus(corpus) if len(part.concepts) > 1]
    record = record_of(parts[0], settings)
    scenes, tables = [], []
    for part, count in zip(parts, (settings.scenes, max(64, settings.scenes // 10)), strict=False):
        say = _sayer(report)
        scenes.append(pictures(part, corpus, artwork, pipe.vae, count, settings.seed, say))
        tables.append(opened(part, base))
    everyone = [adapter for table in tables for rows in table.values() for adapter in rows]
    if model.device.type == "cuda":
        model.to(torch.bfloat16)
    bench = Bench(name, everyone, layers_of(pipe), settings.form)
    vectors = GateVectors(settings.form, bench.widths, settings.seed).to(model.device)
    sides: list[Side] = []
    start = 0
    for table, found in zip(tables, scenes, strict=True):
        places = {}
        for concept, rows in table.items():
            places[concept] = range(start, start + len(rows))
            start += len(rows)
        sides.append(Side(Draws(found, places, settings), Objective(pipe, found, bench, vectors)))
    told = f"{len(everyone)} adapters on {len(bench.sites)} layers, {vectors.values.numel()} numbers to learn"
    report({"event": "note", "text": told})
    try:
        gate = GateWeights(settings.form, base, {}, record)
        held = sides[1] if len(sides) > 1 else None
        run = Run(settings, vectors, sides[0], held, out, gate, report, stop, graph)
        prepared = round(time.monotonic() - begun, 1)
        return {"prepared_seconds": prepared, **run.train()}
    finally:
        bench.leave()


def _frozen(pipe: Any) -> tuple[str, Any]:
    """The denoiser, which nothing trains."""
    name, model = denoiser_of(pipe)
    return name, model.requires_grad_(False).eval()


def _sayer(report: Report) -> Callable[[str], None]:
    return lambda text: report({"event": "note", "text": text})
