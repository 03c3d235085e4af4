"""Stacked layers against PEFT's loop over adapters: one denoiser step, same work, one run.

    python -m benchmarks.stacked [--device cuda] [--kind glyph|sd15]

Writes ``benchmarks/results/stacked_<kind>_<device>.json``. The adapters have random factors; times are
medians of rounds in which the contestants take turns, so that a busy machine hits all of them alike.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.bases import get_base
from loracomp.fusion import Program
from loracomp.fusion.gates import GateBank
from loracomp.fusion.stacked import StackedUpdate
from loracomp.lowrank import LowRank
from loracomp.training.tables import BUILDERS

RESULTS = Path(__file__).parent / "results"
COUNTS = (1, 2, 3, 5, 8)
INPUTS = {"glyph": (16, 256, 32), "sd15": (64, 768, 77)}
"""Side of the latent, width of a text state, tokens."""


def adapters(unet: nn.Module, suffixes: tuple[str, ...], count: int, rank: int) -> list[Adapter]:
    """Adapters with normal factors on the default target layers."""

    def layer(weight: Tensor) -> LowRank:
        tail = (1,) * (weight.ndim - 2)
        down = torch.randn(rank, *weight.shape[1:]) / weight[0].numel() ** 0.5
        return LowRank(down, torch.randn(weight.shape[0], rank, *tail) * 0.01)

    chosen = [
        (path, module)
        for path, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and path.endswith(suffixes)
    ]
    return [Adapter({p: layer(m.weight) for p, m in chosen}, "glyph") for _ in range(count)]


def stacked(unet: nn.Module, chosen: list[Adapter]) -> nn.Module:
    """The UNet with loracomp's layers, gates at 1."""
    updates = {}
    for path in chosen[0].layers:
        pairs = [(index, adapter.layers[path]) for index, adapter in enumerate(chosen)]
        updates[path] = StackedUpdate(pairs, unet.get_submodule(path))
    gates = Program("merge", (1.0,) * len(chosen)).table(1).gates[0]
    GateBank(updates).write(gates.to(next(unet.parameters()).device))
    return unet


def looped(unet: nn.Module, chosen: list[Adapter], rank: int) -> nn.Module:
    """The UNet with PEFT's layers, all adapters active."""
    from peft import LoraConfig

    names = [f"adapter{index}" for index in range(len(chosen))]
    for name, adapter in zip(names, chosen, strict=True):
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(adapter.layers)), name)
        for path, layer in adapter.layers.items():
            module = unet.get_submodule(path)
            module.lora_A[name].weight.data.copy_(layer.down)
            module.lora_B[name].weight.data.copy_(layer.up)
    unet.set_adapters(names)
    return unet


def race(contestants: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of each contestant, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 2):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(kind: str, device: str, rank: int, rounds: int) -> dict[str, Any]:
    """Times of one step on the UNet of ``kind`` for each number of adapters."""
    torch.manual_seed(0)
    place = {"device": device, "dtype": torch.bfloat16 if device == "cuda" else torch.float32}
    base = BUILDERS[kind]()["unet"].to(**place).eval().requires_grad_(False)
    side, width, tokens = INPUTS[kind]
    noise = torch.randn(2, get_base(kind).latent_channels, side, side, **place)
    inputs = (noise, torch.tensor(500), torch.randn(2, tokens, width, **place))
    rows = []
    for count in COUNTS:
        chosen = adapters(base, get_base(kind).targets, count, rank)
        nets = {
            "base": base,
            "stacked": stacked(copy.deepcopy(base), chosen),
            "peft": looped(copy.deepcopy(base), chosen, rank).to(**place),
        }
        with torch.inference_mode():
            outputs = {name: net(*inputs).sample.float() for name, net in nets.items()}
            error = (outputs["stacked"] - outputs["peft"]).norm() / outputs["peft"].norm()
            times = race({name: lambda net=net: net(*inputs) for name, net in nets.items()}, rounds, device)
        rows.append(
            {
                "adapters": count,
                "ms": {name: round(value, 3) for name, value in times.items()},
                "stacked_to_peft": round(times["stacked"] / times["peft"], 3),
                "stacked_to_base": round(times["stacked"] / times["base"], 3),
                "relative_difference": float(error),
            }
        )
    return {"kind": kind, "device": device, "rank": rank, "batch": 2, "rounds": rounds, "rows": rows}


def main() -> None:
    """Runs the race and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=INPUTS, default="glyph")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    wanted = parser.parse_args()
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    result = measure(wanted.kind, wanted.device, wanted.rank, wanted.rounds)
    result |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    path = RESULTS / f"stacked_{wanted.kind}_{wanted.device}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print("adapters   stacked/peft   stacked/base   difference")
    for row in result["rows"]:
        print(
            f"{row['adapters']:8d}   {row['stacked_to_peft']:12.2f}   {row['stacked_to_base']:12.2f}"
            f"   {row['relative_difference']:10.1e}"
        )


if __name__ == "__main__":
    main()
