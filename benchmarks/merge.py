"""Merging five SDXL LoRAs by ``svd`` against PEFT's ``svd``, on the same processor in the same run.

    python -m benchmarks.merge [--layers 2] [--threads 1] [--again concat]

The adapters have random float16 factors of rank 32 on the 722 linear layers of the UNet's attention
blocks. PEFT works on dense matrices and takes minutes to hours, so it gets ``--layers`` layers of each
distinct shape, and its time is multiplied by the number of layers of that shape; loracomp merges the same
layers (for the ratio per shape) and then all of them, from files to a file, with the time of each and the
peak memory over the size of the inputs. ``concat`` takes turns with a plain copy of as many bytes, and the
medians count. ``--again`` measures whole merges by some methods once more and keeps what else was recorded.

Processor times where work is compared with work, so that other work on the machine counts little; its
load is recorded. Writes ``benchmarks/results/merge.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.doctor import resident, sdxl
from loracomp.adapter import Adapter
from loracomp.formats import save
from loracomp.fusion.offline import merge, merge_files

RESULT = Path(__file__).parent / "results" / "merge.json"
WEIGHTS = (1.0, 0.8, 0.6, 0.5, 0.9)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def by_shape(adapter: Adapter) -> dict[tuple[int, ...], list[str]]:
    """Paths of the layers of each weight shape."""
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for path, layer in adapter.layers.items():
        groups[layer.weight_shape].append(path)
    return dict(groups)


def part(adapter: Adapter, paths: list[str]) -> Adapter:
    """Some layers of an adapter."""
    return Adapter({path: adapter.layers[path] for path in paths}, adapter.base, adapter.name)


def peft_model(adapters: list[Adapter]) -> Any:
    """PEFT's model of linear layers named 0, 1, … with the adapters of one shape."""
    from peft import LoraConfig, get_peft_model

    paths = list(adapters[0].layers)
    net = nn.ModuleDict()
    for index, path in enumerate(paths):
        rows, columns = adapters[0].layers[path].weight_shape
        net[str(index)] = nn.Linear(columns, rows, bias=False)
    names = [str(index) for index in range(len(paths))]
    model: Any = None
    for number, adapter in enumerate(adapters):
        first = next(iter(adapter.layers.values()))
        config = LoraConfig(r=first.rank, lora_alpha=first.scale * first.rank, target_modules=names)
        if model is None:
            model = get_peft_model(net, config, f"a{number}")
        else:
            model.add_adapter(f"a{number}", config)
        for index, path in enumerate(paths):
            module = model.base_model.model[str(index)]
            module.lora_A[f"a{number}"].weight.data.copy_(adapter.layers[path].down)
            module.lora_B[f"a{number}"].weight.data.copy_(adapter.layers[path].up)
    return model


def compare(adapters: list[Adapter], count: int) -> list[dict[str, Any]]:
    """PEFT and loracomp on ``count`` layers of each shape: time per layer, and how far apart they are."""
    rows = []
    first = list(adapters[0].layers)[:1]
    merge([part(adapter, first) for adapter in adapters], WEIGHTS, "svd")  # loads what is loaded once
    for shape, paths in sorted(by_shape(adapters[0]).items()):
        some = [part(adapter, paths[:count]) for adapter in adapters]
        model = peft_model(some)
        names = [f"a{number}" for number in range(len(some))]

        def theirs(model: Any = model, names: list[str] = names) -> None:
            model.add_weighted_adapter(names, list(WEIGHTS), "merged", "svd", svd_rank=32)

        merged: list[Adapter] = []

        def ours(some: list[Adapter] = some, merged: list[Adapter] = merged) -> None:
            merged.append(merge(some, WEIGHTS, "svd", rank=32, fair_ranks=False, dtype=torch.float32))

        peft_s, ours_s = seconds(theirs), seconds(ours)
        fair_s = seconds(lambda some=some: merge(some, WEIGHTS, "svd", rank=32))  # type: ignore[misc]
        module = model.base_model.model["0"]
        dense = (module.lora_B["merged"].weight @ module.lora_A["merged"].weight).detach()
        mine = merged[0].layers[paths[0]].delta()
        rows.append(
            {
                "shape": shape,
                "layers": len(paths),
                "measured": len(some[0].layers),
                "peft_s_per_layer": peft_s / len(some[0].layers),
                "loracomp_s_per_layer": ours_s / len(some[0].layers),
                "loracomp_fair_s_per_layer": fair_s / len(some[0].layers),
                "difference": float((dense - mine).norm() / dense.norm()),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def child(folder: Path, method: str, turns: int) -> dict[str, Any]:
    """What a process of its own measures of merges of all layers from files to a file."""
    files = sorted(folder.glob("*.safetensors"))
    rank: dict[str, Any] = {"rank": 32} if method == "svd" else {}
    merge_files(files[:1], folder / "warm.part", None, method, **rank)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    inputs = sum(file.stat().st_size for file in files)
    out, copy = folder / "out.part", folder / "copy.part"
    merges, copies = [], []
    for _ in range(turns):
        os.sync()
        merges.append(timed(lambda: merge_files(files, out, WEIGHTS, method, **rank)))
        memory, written = resident("VmHWM") - before, out.stat().st_size
        os.sync()
        copies.append(timed(lambda size=written: copied(files, copy, size)))  # type: ignore[misc]
        out.unlink()
    wall, copying = (statistics.median(wall for wall, _ in times) for times in (merges, copies))
    return {
        "turns": turns,
        "cpu_s": statistics.median(used for _, used in merges),
        "wall_s": wall,
        "walls_s": [wall for wall, _ in merges],
        "copy_cpu_s": statistics.median(used for _, used in copies),
        "copy_wall_s": copying,
        "copy_walls_s": [wall for wall, _ in copies],
        "wall_to_copy": wall / copying,
        "load_average": os.getloadavg()[0],
        "input_bytes": inputs,
        "output_bytes": written,
        "memory_bytes": memory,
        "memory_to_input": memory / inputs,
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    start = time.perf_counter()
    used = seconds(work)
    return time.perf_counter() - start, used


def copied(files: list[Path], target: Path, size: int) -> None:
    """Reads all files and writes ``size`` bytes to the disk."""
    blank = bytes(1 << 22)
    for file in files:
        with file.open("rb") as opened:
            while opened.read(1 << 22):
                pass
    with target.open("wb") as out:
        for begin in range(0, size, len(blank)):
            out.write(blank[: size - begin])
        out.flush()
        os.fsync(out.fileno())
    target.unlink()


def whole(methods: list[str], threads: int, turns: int) -> dict[str, Any]:
    """Merges of all layers from files to a file, by method, each in a process of its own."""
    result = {}
    with tempfile.TemporaryDirectory() as place:
        for index in range(len(WEIGHTS)):
            save(sdxl(32, index), Path(place) / f"{index}.safetensors")
        for method in methods:
            command = [sys.executable, "-m", "benchmarks.merge", "--child", place, "--method", method]
            command += ["--threads", str(threads), "--turns", str(turns if method == "concat" else 1)]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            result[method] = json.loads(out.stdout.splitlines()[-1])
            print(method, out.stdout.splitlines()[-1], flush=True)
    return result


def main() -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="layers of each shape that PEFT gets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--method", default="svd")
    parser.add_argument("--turns", type=int, default=5, help="merges by concat, and copies")
    parser.add_argument("--again", nargs="+", choices=("svd", "concat"), help="measure these alone")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    if wanted.child:
        print(json.dumps(child(wanted.child, wanted.method, wanted.turns)))
        return
    result = json.loads(RESULT.read_text()) if wanted.again else against_peft(wanted.layers, wanted.threads)
    result |= whole(wanted.again or ["svd", "concat"], wanted.threads, wanted.turns)
    peft = result["peft_cpu_s_extrapolated"]
    result["svd_to_peft"] = result["svd"]["cpu_s"] / peft
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    ratio = f"{result['svd_to_peft']:.3f} of PEFT's time"
    print(f"svd: {result['svd']['cpu_s']:.0f} s against {peft:.0f} s, {ratio}")


def against_peft(count: int, threads: int) -> dict[str, Any]:
    """The layers of each shape by PEFT and by loracomp."""
    rows = compare([sdxl(32, seed) for seed in range(len(WEIGHTS))], count)
    return {
        "adapters": len(WEIGHTS),
        "rank": 32,
        "layers": sum(row["layers"] for row in rows),
        "threads": threads,
        "shapes": rows,
        "peft_cpu_s_extrapolated": sum(row["peft_s_per_layer"] * row["layers"] for row in rows),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }


if __name__ == "__main__":
    main()
