"""The whole recipe as one command: every stage is a process, and they wait for each other's files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loracomp.errors import TrainingError


@dataclass(frozen=True)
class Plan:
    """Minutes of each stage, and where things are."""

    data: Path
    work: Path
    tokenizer: Path
    vae: float
    judge: float
    denoiser: float
    variants: int = 6
    workers: int = 16
    gpus: int = 1


def run_all(plan: Plan) -> None:
    """Start all stages at once; the last one, when the others are done.

    The VAE has the first GPU and the judge the last until the latents are there; then the
    denoiser trains on all of them. Raises TrainingError, and ends the others, if a stage fails.
    """
    plan.work.mkdir(parents=True, exist_ok=True)
    last = str(plan.gpus - 1)
    running = {
        "render": _start(plan, "render", ["--variants", plan.variants, "--workers", plan.workers]),
        "vae": _start(plan, "vae", ["--minutes", plan.vae], {"CUDA_VISIBLE_DEVICES": "0"}),
        "judge": _start(plan, "judge", ["--minutes", plan.judge], {"CUDA_VISIBLE_DEVICES": last}),
        "latents": _start(plan, "latents", [], {"CUDA_VISIBLE_DEVICES": last}),
    }
    for rank in range(plan.gpus):
        places = {
            "RANK": str(rank),
            "WORLD_SIZE": str(plan.gpus),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29517",
        }
        arguments = ["--minutes", plan.denoiser, "--device", f"cuda:{rank}"]
        running[f"denoiser{rank}"] = _start(plan, "denoiser", arguments, places)
    _wait(plan, running)
    _wait(plan, {"finish": _start(plan, "finish", [], {"CUDA_VISIBLE_DEVICES": "0"})})


def _start(
    plan: Plan, stage: str, arguments: list[object], places: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    name = stage + (places or {}).get("RANK", "")
    command = [sys.executable, "-u", "-m", "loracomp.training.glyph", stage]
    command += ["--data", str(plan.data), "--work", str(plan.work)]
    command += ["--tokenizer", str(plan.tokenizer), *(str(a) for a in arguments)]
    with open(plan.work / f"{name}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | (places or {}))


def _wait(plan: Plan, running: dict[str, subprocess.Popen[bytes]]) -> None:
    while running:
        time.sleep(0.5)
        for name, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[name]
            if code:
                for other in running.values():
                    other.terminate()
                said = (plan.work / f"{name}.log").read_text(errors="replace")[-3000:]
                raise TrainingError(f"stage {name} ended with {code}:\n{said}")
