"""Training N adapters at once against training them in turn, on glyph, in one run.

    python -m benchmarks.many [--device cuda] [--adapters 64] [--steps 200] [--ways eager graph compile]

Each way compares like with like: ``eager`` has the trainer of single adapters in turn and many at once,
``graph`` and ``compile`` have the trainer of many with one seat and with all seats, both with the step
recorded as a CUDA graph or the denoiser compiled. Rates are adapters a minute: steps after the first few,
over the number of steps of a run. ``whole`` is the time of the call for all adapters, from reading data
(latents cached) to the last file, recording and compiling included. Memory is what torch allocated at the
peak (on a CPU, how much the process grew) against what was counted beforehand.

Writes ``benchmarks/results/many_<device>.json`` after each contestant; a contestant that is there with the
same settings is not run again unless ``--again``. No contestant is begun after ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from loracomp.loading import open_base
from loracomp.training.interrupt import InterruptedManyError, InterruptedRunError
from loracomp.training.many.manifest import read_manifest
from loracomp.training.many.run import Ways, train_many
from loracomp.training.run import train

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[1] / "examples" / "styles" / "mono"
WAYS = ("eager", "graph", "compile")
WARM_UP = 3
"""Steps that are not timed: the first ones choose kernels, record and compile."""


class Watch:
    """Times steps from a trainer's ``stop``: counts them, and ends the run after a given number."""

    def __init__(self, steps: int, device: str) -> None:
        self.steps, self.device = steps, device
        self.done, self.began, self.seconds = 0, 0.0, 0.0

    def __call__(self) -> bool:
        """Called after every step but perhaps the last."""
        self.done += 1
        if self.done == WARM_UP:
            self._wait()
            self.began = time.perf_counter()
        if self.done == self.steps:
            self._wait()
            self.seconds = (time.perf_counter() - self.began) / (self.steps - WARM_UP)
        return self.done >= self.steps

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def manifest(folder: Path, adapters: int, args: argparse.Namespace) -> Path:
    """Rows that differ in seed and name."""
    rows = [
        {
            "name": f"a{number}", "data": str(DATA), "kind": "style", "base": "glyph", "seed": number,
            "rank": args.rank, "steps": args.steps, "batch": args.batch,
        }
        for number in range(adapters)
    ]  # fmt: skip
    path = folder / f"{adapters}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def single(pipe: Any, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step of the trainer of single adapters."""
    (row,) = read_manifest(manifest(folder, 1, args))
    watch = Watch(WARM_UP + args.timed, args.device)
    with suppress(InterruptedRunError):
        train(row.config, row.folder, folder / "single.safetensors", pipe=pipe, stop=watch)
    return {"step_s": watch.seconds, "adapters_per_minute": 60 / (watch.seconds * args.steps)}


def seated(pipe: Any, folder: Path, args: argparse.Namespace, way: str, seats: int) -> dict[str, Any]:
    """Seconds of a step with so many seats, and the memory."""
    before = peak(args.device, reset=True)
    watch, told = Watch(WARM_UP + args.timed, args.device), [{}]

    def report(event: Any) -> None:
        if event["event"] == "cohort":
            told[0] = event["memory"]

    ways = Ways(seats, way == "compile", way == "graph", report, watch)
    with suppress(InterruptedManyError):
        train_many(manifest(folder, seats, args), folder / f"{way}{seats}", ways, pipe=pipe)
    counted, used = told[0], peak(args.device) - (before if args.device == "cpu" else 0)
    if args.device == "cpu":
        counted = {**counted, "total": counted["total"] - counted["base"]}  # the base was open before
    return {
        "step_s": watch.seconds,
        "adapters_per_minute": 60 * seats / (watch.seconds * args.steps),
        "counted_mib": round(counted["total"] / 2**20, 1),
        "measured_mib": round(used / 2**20, 1),
    }


def whole(pipe: Any, folder: Path, args: argparse.Namespace, way: str) -> dict[str, Any]:
    """All adapters from data to files."""
    begin = time.perf_counter()
    ways = Ways(args.at_once, way == "compile", way == "graph")
    done = train_many(manifest(folder, args.adapters, args), folder / f"whole-{way}", ways, pipe=pipe)
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "at_once": done["at_once"],
        "adapters_per_minute": 60 * args.adapters / seconds,
    }


def peak(device: str, reset: bool = False) -> int:
    """Bytes: the most that torch had allocated on the GPU, or the largest size of the process."""
    if device != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if reset:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def contestants(args: argparse.Namespace, pipe: Any, folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What there is to run, by name, the most important first."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for way in args.ways:
        if way == "eager":
            found["eager in turn"] = lambda: single(pipe, folder, args)
        else:
            found[f"{way} in turn"] = lambda way=way: seated(pipe, folder, args, way, 1)
        found[f"{way} at once"] = lambda way=way: seated(pipe, folder, args, way, args.at_once)
        if args.whole:
            found[f"{way} whole"] = lambda way=way: whole(pipe, folder, args, way)
    return found


def table(rows: dict[str, Any], ways: list[str]) -> str:
    """The result as text."""
    lines = ["way      in turn, adapters/min   at once, adapters/min   ratio   memory measured / counted"]
    for way in ways:
        turn, once = rows.get(f"{way} in turn"), rows.get(f"{way} at once")
        if turn and once:
            ratio = once["adapters_per_minute"] / turn["adapters_per_minute"]
            memory = once["measured_mib"] / once["counted_mib"]
            lines.append(
                f"{way:8} {turn['adapters_per_minute']:22.2f} {once['adapters_per_minute']:23.2f} "
                f"{ratio:7.2f} {memory:10.2f}"
            )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The command line; sizes follow the device where they are not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--adapters", type=int, help="in the whole run")
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--steps", type=int, default=200, help="of a run, for the rate")
    parser.add_argument("--timed", type=int, help="steps that are timed")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--whole", action="store_true", help="train --adapters from data to files as well")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    big = args.device == "cuda"
    args.at_once = args.at_once or (64 if big else 8)
    args.adapters = args.adapters or args.at_once
    args.timed = min(args.timed or (40 if big else 6), args.steps - WARM_UP - 1)
    if args.timed < 1:
        parser.error(f"--steps {args.steps}: too few to time any; give {WARM_UP + 2} or more")
    args.batch = args.batch or (4 if big else 2)
    args.ways = args.ways or (["eager", "graph"] if big else ["eager"])
    return args


def main() -> None:
    """Runs what is missing, prints the table, writes the file."""
    args = parsed()
    begin, path = time.monotonic(), RESULTS / f"many_{args.device}.json"
    settings = {
        name: getattr(args, name) for name in ("at_once", "adapters", "steps", "timed", "batch", "rank")
    }
    settings |= {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "precision": "bf16" if args.device == "cuda" else "fp32",
    }
    known = json.loads(path.read_text()) if path.is_file() and not args.again else {}
    rows: dict[str, Any] = known.get("rows", {}) if known.get("settings") == settings else {}
    dtype = "bf16" if args.device == "cuda" else "fp32"
    pipe = open_base("glyph", dtype=dtype, device=args.device)
    with tempfile.TemporaryDirectory() as folder:
        for name, run in contestants(args, pipe, Path(folder)).items():
            if name in rows or time.monotonic() - begin > 60 * args.minutes:
                continue
            rows[name] = run()
            print(f"{name}: {rows[name]}", flush=True)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    print(table(rows, args.ways))


if __name__ == "__main__":
    main()
