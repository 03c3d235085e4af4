"""Merging five SDXL LoRAs by ``svd`` against PEFT's ``svd``, on the same processor in the same run.

    python -m benchmarks.merge [--layers 2] [--threads 1]

The adapters have random float16 factors of rank 32 on the 722 linear layers of the UNet's attention
blocks. PEFT works on dense matrices and takes minutes to hours, so it gets ``--layers`` layers of each
distinct shape, and its time is multiplied by the number of layers of that shape; loracomp merges the same
layers (for the ratio per shape) and then all of them, from files to a file, with the time of each and the
peak memory over the size of the inputs. ``concat`` is timed beside a plain copy of as many bytes.

Processor times, so that other work on the machine counts little. Writes ``benchmarks/results/merge.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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


def child(folder: Path, method: str) -> dict[str, float]:
    """What a process of its own measures of one merge of all layers from files to a file."""
    files = sorted(folder.glob("*.safetensors"))
    rank: dict[str, Any] = {"rank": 32} if method == "svd" else {}
    merge_files(files[:1], folder / "warm.part", None, method, **rank)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, wall = resident("VmRSS"), time.perf_counter()
    used = seconds(lambda: merge_files(files, folder / "out.part", WEIGHTS, method, **rank))
    wall = time.perf_counter() - wall
    inputs = sum(file.stat().st_size for file in files)
    written = (folder / "out.part").stat().st_size
    return {
        "cpu_s": used,
        "wall_s": wall,
        "copy_wall_s": copied(files, folder / "copy.part", written),
        "input_bytes": inputs,
        "output_bytes": written,
        "memory_bytes": resident("VmHWM") - before,
        "memory_to_input": (resident("VmHWM") - before) / inputs,
    }


def copied(files: list[Path], target: Path, size: int) -> float:
    """Seconds for reading all files and writing ``size`` bytes to the disk."""
    start = time.perf_counter()
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
    return time.perf_counter() - start


def main() -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="layers of each shape that PEFT gets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--method", default="svd")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    if wanted.child:
        print(json.dumps(child(wanted.child, wanted.method)))
        return
    adapters = [sdxl(32, seed) for seed in range(len(WEIGHTS))]
    rows = compare(adapters, wanted.layers)
    peft = sum(row["peft_s_per_layer"] * row["layers"] for row in rows)
    result: dict[str, Any] = {
        "adapters": len(WEIGHTS),
        "rank": 32,
        "layers": sum(row["layers"] for row in rows),
        "threads": wanted.threads,
        "shapes": rows,
        "peft_cpu_s_extrapolated": peft,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    with tempfile.TemporaryDirectory() as place:
        for index, adapter in enumerate(adapters):
            save(adapter, Path(place) / f"{index}.safetensors")
        adapters.clear()
        for method in ("svd", "concat"):
            command = [sys.executable, "-m", "benchmarks.merge", "--child", place, "--method", method]
            command += ["--threads", str(wanted.threads)]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            result[method] = json.loads(out.stdout.splitlines()[-1])
            print(method, out.stdout.splitlines()[-1], flush=True)
    result["svd_to_peft"] = result["svd"]["cpu_s"] / peft
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    ratio = f"{result['svd_to_peft']:.3f} of PEFT's time"
    print(f"svd: {result['svd']['cpu_s']:.0f} s against {peft:.0f} s, {ratio}")


if __name__ == "__main__":
    main()
