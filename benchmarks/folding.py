"""How long folding takes, by the kernel's blocks: ``python -m benchmarks.folding``; needs a GPU.

Each shape is that of a layer of SDXL or FLUX.1. Launches are recorded in a CUDA graph over weights that do
not fit the second-level cache together; microseconds of one launch, beside torch's own ``addmm`` and a plain
copy of the weight, which is the least that writing a folded weight can take. ``folding_cuda.json`` holds them
with the sum over the layers of SDXL's UNet. ``--tiny`` runs the kernel in Triton's interpreter, to see that
it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

RESULT = Path(__file__).parent / "results" / "folding_cuda.json"
SHAPES: dict[tuple[int, int], int] = {
    (1280, 1280): 372, (1280, 2048): 120, (10240, 1280): 60, (1280, 5120): 60, (640, 640): 70,
    (640, 2048): 20, (5120, 640): 10, (640, 2560): 10, (3072, 3072): 0, (12288, 3072): 0,
}  # fmt: skip
"""Rows and columns of weights, and how many of them SDXL's UNet has."""
BLOCKS = (
    (64, 128, 32, 4, 3), (128, 128, 32, 8, 3), (64, 64, 32, 4, 3), (32, 128, 32, 4, 3), (128, 64, 32, 4, 3),
    (64, 256, 32, 8, 3), (128, 128, 32, 4, 3), (64, 128, 32, 4, 5), (64, 64, 32, 4, 5), (128, 256, 32, 8, 3),
    (64, 128, 32, 8, 3),
)  # fmt: skip
"""Rows, columns and ranks of a block, warps, stages."""
BYTES = 2.4e8


def timed(run: Callable[[], Any], launches: int, device: str) -> float:
    """Microseconds of one launch."""
    run()
    if device == "cpu":
        begun = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - begun) / launches
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(5):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1000 * begin.elapsed_time(end) / 5 / launches


def measure(rows: int, columns: int, rank: int, tiny: bool) -> dict[str, float]:
    """All contestants on one shape."""
    from loracomp.fusion import kernels

    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)
    count = 1 if tiny else min(40, max(4, int(BYTES / (2 * rows * columns))))
    made: dict[str, Any] = {"device": device, "dtype": dtype}
    weights = [torch.randn(rows, columns, **made) for _ in range(count)]
    factors = [(torch.randn(rows, rank, **made), torch.randn(rank, columns, **made)) for _ in range(count)]
    gate = torch.ones(1, rank, **made)

    def folded(blocks: tuple[int, ...]) -> None:
        for weight, (up, down) in zip(weights, factors, strict=True):
            kernels.launch(kernels._fold, weight, up, gate, down, blocks)

    def product() -> None:
        for weight, (up, down) in zip(weights, factors, strict=True):
            torch.addmm(weight, up * gate, down)

    def copied() -> None:
        for weight in weights:
            weight.clone()

    found = {
        " ".join(map(str, blocks)): timed(partial(folded, blocks), count, device)
        for blocks in (BLOCKS[:1] if tiny else BLOCKS)
    }
    found |= {"addmm": timed(product, count, device), "copy": timed(copied, count, device)}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Times, sums, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, default=160)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    if asked.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    shapes = {(70, 130): 1} if asked.tiny else SHAPES
    table = {shape: measure(*shape, asked.ranks, asked.tiny) for shape in shapes}
    names = next(iter(table.values()))
    sums = {n: round(sum(table[s][n] * count / 1000 for s, count in shapes.items()), 2) for n in names}
    machine = "CPU" if asked.tiny else torch.cuda.get_device_name()
    result = {
        "setting": {"machine": machine, "torch": torch.__version__, "ranks": asked.ranks},
        "microseconds": {f"{rows}x{columns}": found for (rows, columns), found in table.items()},
        "sdxl_milliseconds": sums,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(sums, indent=1))


if __name__ == "__main__":
    main()
