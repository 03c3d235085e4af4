"""The engine at real sizes against PEFT's ``set_adapters``, fused weights and no adapter at all, in one run.

    python -m benchmarks.engine [--only PART] [--counts 5] [--device cuda] [--out FOLDER]

Models have public sizes and random weights, so nothing is downloaded. Contestants take turns; figures are
medians of single calls, by CUDA events on a GPU. Each finished measurement is written at once to
``engine_<device>.json`` and is not repeated by a later call, so a time limit loses nothing; ``--fresh``
begins anew. ``--tiny`` runs everything on small models, to see that it runs. Parts: see :data:`PARTS`.

``first_calls_s`` holds what compiling took, ``base_alone`` the base before anything was attached: graphs made
later check the modules' hooks (:mod:`loracomp.fusion.graphs`).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_models import Stage
from benchmarks.engine_session import Run, Session, graphs
from loracomp.fusion import CachePlan, Program
from loracomp.fusion.offline import Folding
from loracomp.pipeline import attach, detach, layers_of

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Part:
    """One group of measurements: what runs, on which model, at which size of the latent."""

    kind: str
    model: str
    side: int
    counts: tuple[int, ...]
    compiled: bool


PARTS = {
    "sdxl-eager": Part("step", "sdxl", 128, (1, 3, 5, 8), False),
    "sdxl-compiled": Part("step", "sdxl", 128, (1, 3, 5, 8), True),
    "flux-eager": Part("step", "flux", 128, (1, 3, 5), False),
    "flux-compiled": Part("step", "flux", 128, (1, 3, 5), True),
    "composite-eager": Part("composite", "sdxl", 128, (5,), False),
    "composite-compiled": Part("composite", "sdxl", 128, (5,), True),
    "schedule-eager": Part("schedule", "sdxl", 128, (5,), False),
    "mixtures-glyph": Part("mixtures", "glyph", 16, (5,), True),
    "mixtures-sdxl-512": Part("mixtures", "sdxl", 64, (5,), True),
    "mixtures-sdxl-1024": Part("mixtures", "sdxl", 128, (5,), True),
}


def step(session: Session, part: Part, count: int) -> dict[str, Any]:
    """One denoiser call with ``count`` adapters: no adapter, fused, ours, PEFT's."""
    stage = session.stage(part.model)
    arguments = stage.arguments(1, session.side(part.side))
    adapters = stage.adapters(count)
    size = sum(
        t.numel() * t.element_size() for a in adapters for v in a.layers.values() for t in (v.down, v.up)
    )
    wrapped = session.compile if part.compiled else (lambda run: run)
    base = wrapped(stage.module.forward)
    runs: dict[str, Run] = {"base": lambda: base(**arguments)}
    # Workspaces of libraries are allocated once, at the first call; they belong to nobody.
    alone = session.race(runs)["base"]
    before = session.allocated()
    ours = stage.twin()
    attachment = attach(ours.place, adapters, compile=session.options if part.compiled else False)
    held = session.allocated() - before
    runs["ours"] = lambda: ours.module(**arguments)
    found: dict[str, Any] = {"adapters_mb": round(size / 2**20, 1), "first_calls_s": {}}
    if "fused" in session.contestants:
        folding = Folding(layers_of(stage.place))
        runs["fused"] = lambda: base(**arguments)
    if "peft" in session.contestants:
        peer = stage.twin()
        peer.load(adapters)
        loop = wrapped(peer.module.forward)
        runs["peft"] = lambda: loop(**arguments)
    fused = runs.pop("fused", None)
    found["ms"] = session.race(runs, found["first_calls_s"])
    if "peft" in runs:
        found["relative_difference"] = _difference(runs["ours"]()[0], runs["peft"]()[0])
    if fused is not None:
        folding.fold(adapters)
        found["ms"]["fused"] = session.race({"fused": fused})["fused"]
        folding.unfold()
    found["ms"]["base_alone"] = alone
    dynamic = session.peak(runs["ours"]) - session.peak(runs["base"])
    if session.device == "cuda":
        found["over_base_mb"] = round((held + dynamic) / 2**20, 1)
        found["over_adapters"] = round((held + dynamic) / size, 3)
    found |= _reweighting(session, attachment, runs["ours"], count)
    detach(ours.place)
    ms = found["ms"]
    found["ours_over_base"] = round(ms["ours"] / ms["base"], 3)
    if "peft" in ms:
        found["ours_over_peft"] = round(ms["ours"] / ms["peft"], 3)
    found["summary"] = " ".join(
        f"{k} {v}" for k, v in found.items() if k.startswith(("ours_over", "over_ad", "re"))
    )
    return found


def _difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    value, reference = value.float(), reference.float()
    return float((value - reference).norm() / reference.norm())


def _reweighting(session: Session, attachment: Any, run: Run, count: int) -> dict[str, Any]:
    """Changing all weights: the call that does it, and what the next step takes longer than usual."""
    usual, calls, after, before = session.race({"run": run})["run"], [], [], graphs()
    for turn in range(12):
        weights = [0.1 * ((turn + number) % 10) for number in range(count)]
        started = time.perf_counter()
        attachment.set_weights(weights)
        calls.append(1000 * (time.perf_counter() - started))
        after.append(session.timed(run))
    return {
        "reweight_ms": round(statistics.median(calls), 4),
        "reweight_next_step_ms": round(statistics.median(after) - usual, 4),
        "recompilations": graphs() - before,
    }


def composite(session: Session, part: Part, count: int) -> dict[str, Any]:
    """A prediction per adapter, averaged: one batch of ours against one pass of PEFT's after another."""
    stage = session.stage(part.model)
    arguments = stage.arguments(1, session.side(part.side))
    adapters = stage.adapters(count)
    wrapped = session.compile if part.compiled else (lambda run: run)
    ours, peer = stage.twin(), stage.twin()
    attach(ours.place, adapters, "composite", compile=session.options if part.compiled else False)
    names = peer.load(adapters)
    loop = wrapped(peer.module.forward)

    def passes() -> torch.Tensor:
        found = []
        for name in names:
            peer.module.set_adapters([name], [1.0])  # type: ignore[operator]
            found.append(loop(**arguments)[0])
        return torch.stack(found).mean(0)

    return _against(session, {"ours": lambda: ours.module(**arguments)[0], "peft": passes}, 1, ours)


def schedule(session: Session, part: Part, count: int) -> dict[str, Any]:
    """A whole run of CMLoRA, with its cache and without, against one of ``composite``: means of steps."""
    stage = session.stage(part.model)
    arguments, adapters = stage.arguments(1, session.side(part.side)), stage.adapters(count)
    options = {"bands": ["high", "low"] * (count // 2) + ["high"] * (count % 2)}
    weights = (1.0,) * count
    programs = {
        "composite": Program("composite", weights),
        "cmlora": Program("cmlora", weights, options, cache=CachePlan()),
        "cmlora_uncached": Program("cmlora", weights, {**options, "cached": False}),
        "merge": Program("merge", weights),
    }
    times = stage.scheduler.timesteps

    def whole(ours: Stage) -> None:
        for moment in times:
            ours.module(**{**arguments, "timestep": moment})

    runs: dict[str, Run] = {}
    for name, program in programs.items():
        ours = stage.twin()
        attach(ours.place, adapters, program, compile=session.options if part.compiled else False)
        runs[name] = partial(whole, ours)
    found: dict[str, Any] = {"steps": len(times), "first_calls_s": {}}
    ms = session.race(runs, found["first_calls_s"])
    found["ms"] = {name: round(value / len(times), 4) for name, value in ms.items()}
    found["over_composite"] = {name: round(value / ms["composite"], 3) for name, value in ms.items()}
    found["summary"] = f"over composite {found['over_composite']}"
    return found


def mixtures(session: Session, part: Part, count: int) -> dict[str, Any]:
    """A batch of 8 images with 8 mixtures against one image after another with ``set_adapters``."""
    images = 2 if session.tiny else 8
    stage = session.stage(part.model)
    adapters = stage.adapters(count)
    together = stage.arguments(images, session.side(part.side))
    alone = stage.arguments(1, session.side(part.side))
    weights = [[round(0.2 + 0.1 * ((3 * image + n) % 8), 1) for n in range(count)] for image in range(images)]
    ours, peer = stage.twin(), stage.twin()
    programs = [Program("merge", tuple(row)) for row in weights]
    attach(ours.place, adapters, programs, compile=session.options if part.compiled else False)
    names = peer.load(adapters)
    loop = session.compile(peer.module.forward) if part.compiled else peer.module.forward

    def one_by_one() -> None:
        for row in weights:
            peer.module.set_adapters(names, row)  # type: ignore[operator]
            loop(**alone)

    def passes() -> None:
        for _ in weights:
            loop(**alone)

    runs = {"ours": lambda: ours.module(**together), "peft": one_by_one, "peft_without_switching": passes}
    return _against(session, runs, images, ours)


def _against(session: Session, runs: dict[str, Run], images: int, ours: Stage) -> dict[str, Any]:
    found: dict[str, Any] = {"images": images, "first_calls_s": {}}
    found["ms"] = session.race(runs, found["first_calls_s"])
    if images == 1:
        found["relative_difference"] = _difference(runs["ours"](), runs["peft"]())
    detach(ours.place)
    ms = found["ms"]
    found["peft_over_ours"] = {name: round(ms[name] / ms["ours"], 3) for name in ms if name != "ours"}
    found["ours_over_peft"] = round(ms["ours"] / ms["peft"], 3)
    found["summary"] = f"ours_over_peft {found['ours_over_peft']}, peft_over_ours {found['peft_over_ours']}"
    return found


KINDS: dict[str, Callable[[Session, Part, int], dict[str, Any]]] = {
    "step": step,
    "composite": composite,
    "schedule": schedule,
    "mixtures": mixtures,
}


def run_part(session: Session, name: str, counts: Sequence[int]) -> None:
    """All measurements of a part that are not there yet."""
    part = PARTS[name]
    wanted = (2,) if session.tiny else part.counts
    for count in [count for count in wanted if not counts or count in counts]:
        key = f"{name}-{count}" + (f"-{session.mode}" if session.mode and part.compiled else "")
        if key in session.results:
            continue
        torch._dynamo.reset()
        with torch.inference_mode():
            found = KINDS[part.kind](session, part, count)
        session.note(key, found)
        gc.collect()
        if session.device == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", default=[])
    parser.add_argument("--counts", type=int, nargs="*", default=[])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--calls", type=int, default=0)
    parser.add_argument("--backend", default="")
    parser.add_argument("--mode", default="", help="of torch.compile, such as reduce-overhead")
    parser.add_argument("--without", choices=("peft", "fused"), nargs="*", default=[])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    name = f"engine_{'tiny_' if asked.tiny else ''}{asked.device}.json"
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / name
    kept = json.loads(file.read_text()) if file.is_file() and not asked.fresh else {}
    machine = torch.cuda.get_device_name() if asked.device == "cuda" else "CPU"
    kept["setting"] = {"machine": machine, "torch": torch.__version__, "tiny": asked.tiny}
    session = Session(
        asked.device,
        torch.bfloat16 if asked.device == "cuda" else torch.float32,
        asked.tiny,
        asked.rounds or (1 if asked.tiny else 5),
        asked.calls or (1 if asked.tiny else 8),
        asked.backend or ("eager" if asked.tiny else "inductor"),
        tuple(name for name in ("peft", "fused") if name not in asked.without),
        file,
        kept,
        asked.mode,
    )
    for part in asked.only or PARTS:
        run_part(session, part, asked.counts)


if __name__ == "__main__":
    main()
