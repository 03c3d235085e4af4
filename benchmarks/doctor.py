"""How fast and how lean ``loracomp doctor`` is, against hashing the same file once.

The file is an SDXL LoRA of all 722 linear layers of the UNet's attention blocks, rank 32, float16
(170 MB). Processor time and memory are those of a fresh process on one core with one thread; targets
are at most 3.5 times the time of one SHA-256 and 1.3 times the largest tensor plus 100 MB above the
imports. The first examination also makes the tables of names of all bases; of the later ones, which take
turns with hashing, the fastest counts, so that other work on the machine counts as little as it can
(its load is recorded).

Run ``python -m benchmarks.doctor``; the result goes to ``benchmarks/results/doctor.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import torch

from loracomp.adapter import Adapter
from loracomp.bases import UNET_TARGETS, modules
from loracomp.formats import diagnose, doctor, save
from loracomp.formats.doctor import prepare_process
from loracomp.lowrank import LowRank

RESULT = Path(__file__).parent / "results" / "doctor.json"
_TURNS = 60
LAYERS = (".to_q", ".to_k", ".to_v", ".to_out.0", ".proj_in", ".proj_out", ".ff.net.0.proj", ".ff.net.2")


def sdxl(rank: int, seed: int = 0) -> Adapter:
    """A random SDXL LoRA on the 722 layers that kohya's trainer takes by default."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, shape in modules("sdxl").items():
        if path.startswith("unet.") and ".attentions." in path and path.endswith(LAYERS):
            down = torch.randn((rank, shape[1]), generator=generator) * 0.02
            up = torch.randn((shape[0], rank), generator=generator) * 0.02
            layers[path] = LowRank(down.half(), up.half(), rank / 2)
    return Adapter(layers, "sdxl", "bench")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of some work: other processes on the machine do not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def sha256(path: Path) -> str:
    """The hash of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resident(field: str) -> int:
    """Resident memory in bytes: VmRSS now, or VmHWM at its highest since the last reset."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def child(path: Path) -> dict[str, float]:
    """What a process of its own measures: first and later examinations, hashing, peak memory in bytes."""
    prepare_process()
    sha256(path)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    first = cpu_seconds(lambda: diagnose(path))
    peak = resident("VmHWM")
    if not diagnose(path).complete:
        raise SystemExit("the file is not complete")
    turns = [(cpu_seconds(lambda: sha256(path)), cpu_seconds(lambda: diagnose(path))) for _ in range(_TURNS)]
    hashing, examining = (min(times) for times in zip(*turns, strict=True))
    return {
        "hash_cpu_s": hashing,
        "first_cpu_s": first,
        "again_cpu_s": examining,
        "again_ratio": examining / hashing,
        "again_ratio_median": statistics.median(examining / hashing for hashing, examining in turns),
        "turns": _TURNS,
        "memory_bytes": peak - before,
    }


def on_one_core(path: Path) -> dict[str, float]:
    """:func:`child` in a fresh process bound to one core."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.doctor", "--child", str(path)]
    if hasattr(os, "sched_setaffinity"):
        core = sorted(os.sched_getaffinity(0))[0]
        command = ["taskset", "-c", str(core), *command]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(out.stdout))


def glyph(seed: int, dtype: torch.dtype = torch.float16) -> Adapter:
    """A random glyph LoRA of rank 4 on its default targets."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, shape in modules("glyph").items():
        if path.startswith("unet.") and path.endswith(UNET_TARGETS):
            tail = (1,) * (len(shape) - 2)
            down = torch.randn((4, *shape[1:]), generator=generator).to(dtype)
            layers[path] = LowRank(down, torch.randn((shape[0], 4, *tail), generator=generator).to(dtype))
    return Adapter(layers, "glyph", f"glyph{seed}")


def folder(files: list[Path]) -> dict[str, float]:
    """Seconds for a folder whose eight last files hold what the eight first hold, on all cores."""
    seen: list[tuple[int, int]] = []
    start = time.perf_counter()
    checkup = doctor([files[0].parent], progress=lambda done, total: seen.append((done, total)))
    seconds = time.perf_counter() - start
    if len(seen) != len(files) or len(checkup.duplicates) != 8:
        raise SystemExit(f"{len(seen)} steps of progress, {len(checkup.duplicates)} groups of duplicates")
    size = sum(file.stat().st_size for file in files)
    rates = {"files_per_s": len(files) / seconds, "mb_per_s": size / seconds / 1e6}
    return {"files": len(files), "seconds": seconds, **rates, "cores": os.cpu_count() or 1}


def written(adapters: Iterable[Adapter], place: Path) -> list[Path]:
    """Files of the adapters in a folder of their own."""
    place.mkdir()
    return [save(adapter, place / f"{number}.safetensors") for number, adapter in enumerate(adapters)]


def folders(count: int, place: Path) -> dict[str, dict[str, float]]:
    """``count`` glyph files, and 48 of SDXL of rank 4; glyph's copies in another type."""
    small = chain(map(glyph, range(count - 8)), (glyph(seed, torch.float32) for seed in range(8)))
    large = chain((sdxl(4, seed) for seed in range(40)), (sdxl(4, seed) for seed in range(8)))
    return {
        "glyph": folder(written(small, place / "glyph")),
        "sdxl": folder(written(large, place / "sdxl")),
    }


def main() -> None:
    """Makes the files, measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--files", type=int, default=1000)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return
    with tempfile.TemporaryDirectory() as place:
        path = save(sdxl(32), Path(place) / "sdxl.safetensors")
        figures = on_one_core(path)
        largest = 10240 * 32 * 2
        result = {
            "file_bytes": path.stat().st_size,
            "modules": len(sdxl(1).layers),
            "load_average": os.getloadavg()[0],
            **figures,
            "first_ratio": figures["first_cpu_s"] / figures["hash_cpu_s"],
            "target_ratio": 3.5,
            "memory_target_bytes": 1.3 * largest + 100e6,
            "folders": folders(options.files, Path(place)),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
