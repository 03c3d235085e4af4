"""What a gate costs: a gated step against the ungated stacked one, and the memory beyond it, in one run.

    python -m benchmarks.gate [--model sdxl] [--count 3] [--eager] [--device cuda] [--out FOLDER]

The model has its public size and random weights, the gate random vectors; neither changes the cost.
Contestants take turns; figures are medians of single calls, by CUDA events on a GPU. ``gate_<device>.json``
holds, for each form of the gate, milliseconds, the ratio to the ungated step (target 1.25) and the memory
beyond it over the memory of the ungated step, weights included (target 0.1). Unless ``--eager`` is given, the
repeated blocks of all contestants are compiled, each kind of block once. ``--tiny`` runs everything on a
small model, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_models import Stage
from benchmarks.engine_session import Run, Session
from loracomp.fusion import Program
from loracomp.fusion.gated import Form, GateWeights
from loracomp.pipeline import attach, base_of

RESULTS = Path(__file__).parent / "results"
FORMS: Mapping[str, Form] = {
    "ours": Form.ours(),
    "published": Form.published("P"),
    "published joint": Form.published("P", joint=True),
    "lora alone": Form.ours(base=False, cross=False),
}


def random_gate(stage: Stage, form: Form) -> GateWeights:
    """A gate far from where it starts, for every layer that adapters change."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for path, update in stage.adapters(1)[0].layers.items():
        start = form.initial(len(update.up), generator)
        layers[path] = start + 0.2 * torch.randn(start.shape, generator=generator)
    return GateWeights(form, base_of(stage.place), layers)


def measure(
    session: Session, model: str, count: int, compiled: bool, side: int, forms: Sequence[str]
) -> dict[str, Any]:
    """One step of a model with ``count`` adapters, summed and gated."""
    stage = session.stage(model)
    arguments, adapters = stage.arguments(1, session.side(side)), stage.adapters(count)
    held: dict[str, int] = {}
    runs: dict[str, Run] = {}
    before = session.allocated()
    with tempfile.TemporaryDirectory() as folder:
        for name, form in {"sum": None, **{name: FORMS[name] for name in forms}}.items():
            twin, program = stage.twin(), Program("merge")
            if form is not None:
                file = Path(folder) / f"{name}.safetensors"
                random_gate(stage, form).save(file)
                program = Program("gated", options={"gate": str(file)})
            start = session.allocated()
            attach(twin.place, adapters, program)
            if compiled:
                module: Any = twin.module
                module.compile_repeated_blocks(**session.options)
            held[name] = session.allocated() - start
            runs[name] = partial(twin.module, **arguments)
        first: dict[str, float] = {}
        ms = session.race(runs, first)
        peaks = {name: session.peak(run) for name, run in runs.items()}
        changed = {name: _apart(runs[name]()[0], runs["sum"]()[0]) for name in forms}
    whole = before + held["sum"] + peaks["sum"]
    found: dict[str, Any] = {"ms": ms, "first_calls_s": first, "gate_changes": changed}
    found["over_sum"] = {name: round(ms[name] / ms["sum"], 3) for name in forms}
    if session.device == "cuda":
        extra = {name: held[name] + peaks[name] - held["sum"] - peaks["sum"] for name in forms}
        found["extra_mb"] = {name: round(value / 2**20, 1) for name, value in extra.items()}
        found["extra_share"] = {name: round(value / whole, 4) for name, value in extra.items()}
    found["summary"] = f"over the sum {found['over_sum']}, memory {found.get('extra_share', 'not measured')}"
    return found


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative difference: that the gate is at work."""
    return round(float((one.float() - other.float()).norm() / other.float().norm()), 4)


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="sdxl", choices=("sdxl", "flux", "glyph"))
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--side", type=int, default=0, help="side of the latent; 128, or 16 for glyph")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--only", choices=FORMS, nargs="*", default=list(FORMS), help="forms of the gate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / f"gate_{'tiny_' if asked.tiny else ''}{asked.device}.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    machine = torch.cuda.get_device_name() if asked.device == "cuda" else "CPU"
    kept["setting"] = {"machine": machine, "torch": torch.__version__, "tiny": asked.tiny}
    dtype = torch.bfloat16 if asked.device == "cuda" else torch.float32
    how = (asked.device, dtype, asked.tiny, asked.rounds, asked.calls, asked.backend)
    session = Session(*how, (), file, kept)
    side = asked.side or (16 if asked.model == "glyph" else 128)
    with torch.inference_mode():
        found = measure(session, asked.model, asked.count, not asked.eager, side, asked.only)
    session.note(f"{asked.model}-{asked.count}-{'eager' if asked.eager else 'compiled'}", found)


if __name__ == "__main__":
    main()
