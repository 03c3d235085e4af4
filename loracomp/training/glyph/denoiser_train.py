"""Training of denoiser and text encoder together, on one GPU or several."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from loracomp.training.glyph.clock import (
    Average,
    Budget,
    Log,
    learning_rate,
    save_atomic,
    set_learning_rate,
    wait_for,
)
from loracomp.training.glyph.denoiser import (
    DenoiserConfig,
    DenoiserLoss,
    build_text_encoder,
    build_unet,
    draw_timesteps,
)


@dataclass(frozen=True)
class DenoiserRun:
    """How denoiser and text encoder are trained; ``batch`` is the sum over all devices."""

    minutes: float = 11.0
    batch: int = 1024
    rate: float = 8e-4
    empty: float = 0.1
    compile: bool = True
    steps: int | None = None
    model: DenoiserConfig = field(default_factory=DenoiserConfig)


class Workers:
    """The processes that train together; every process holds a whole copy of the model."""

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1:
            if device.startswith("cuda"):
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.count == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])

    def agree(self, value: float, device: str) -> float:
        """The first process's value, everywhere."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], device=device)
        dist.broadcast(shared, 0)
        return float(shared)


def train_denoiser(run: DenoiserRun, work: Path, device: str) -> None:
    """Train for the run's minutes, then write ``work/{unet,text_encoder}.safetensors``.

    Compiles first, then waits for ``work/latents.pt``. Resumes from ``work/denoiser.pt``.
    """
    torch.manual_seed(21)
    workers = Workers(device)
    loss = DenoiserLoss(build_unet(run.model), build_text_encoder(run.model)).to(device)
    loss.unet.to(memory_format=torch.channels_last)
    log = Log(work / "denoiser.json", {"run": asdict(run), "processes": workers.count})
    step = _optimize(run, loss, workers, log, work)
    if workers.rank == 0:
        _finish(loss, log, step, work)
    if workers.count > 1:
        dist.barrier()
        dist.destroy_process_group()


def _optimize(run: DenoiserRun, loss: DenoiserLoss, workers: Workers, log: Log, work: Path) -> int:
    """Train until the budget is spent; leaves the averaged weights in ``loss``. The step count."""
    device = str(loss.signal.device)
    average = Average(loss, 0.9995)
    optimizer = torch.optim.AdamW(
        loss.parameters(), run.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=run.compile
    )
    step, spent = _resume(work / "denoiser.pt", loss, average)
    compiled = torch.compile(loss) if run.compile else loss
    torch.manual_seed(100 + workers.rank + step)
    batch = run.batch // workers.count
    _warm_up(compiled, run, batch, device)
    saved = torch.load(wait_for(work / "latents.pt", minutes=15))
    data = saved["latents"].to(device), saved["ids"].to(device)
    budget = Budget(run.minutes, spent)
    total, seen, last = torch.zeros((), device=device), 0, budget.spent
    fraction = workers.agree(budget.passed(step, run.steps), device)
    while fraction < 1:
        set_learning_rate(optimizer, learning_rate(run.rate, step, fraction, warm=400))
        total += _step(compiled, _batch(data, batch, run), optimizer, workers, run)
        average.update(loss.parameters(), step)
        step, seen = step + 1, seen + 1
        if step % 20 == 0 or run.steps:
            fraction = workers.agree(budget.passed(step, run.steps), device)
        if workers.rank == 0 and budget.spent - last > 30:
            log.add(step=step, seconds=budget.spent, loss=float(total) / seen)
            total.zero_()
            seen, last = 0, budget.spent
            _save(work / "denoiser.pt", loss, average, step, budget.spent)
    average.copy_to(loss)
    return step


def _batch(data: tuple[Tensor, Tensor], batch: int, run: DenoiserRun) -> tuple[Tensor, ...]:
    """Latents, noise, timesteps and token ids of random entries; some captions emptied."""
    latents, ids = data
    device = latents.device
    rows = torch.randint(len(latents), (batch,), device=device)
    which = torch.randint(ids.shape[1], (batch,), device=device)
    tokens = ids[rows, which].long()
    empty = torch.ones_like(tokens)
    empty[:, 0] = 0
    drop = torch.rand(batch, 1, device=device) < run.empty
    picked = latents[rows].float()
    noise = torch.randn_like(picked)
    return picked, noise, draw_timesteps(batch, device), torch.where(drop, empty, tokens)


def _step(
    loss: Any,
    batch: tuple[Tensor, ...],
    optimizer: torch.optim.Optimizer,
    workers: Workers,
    run: DenoiserRun,
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=run.compile):
        value: Tensor = loss(*batch)
    value.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    workers.average([p.grad for p in parameters if p.grad is not None])
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return value.detach()


def _warm_up(loss: Any, run: DenoiserRun, batch: int, device: str) -> None:
    """Compile on random latents; changes no weight."""
    if not run.compile:
        return
    began = time.monotonic()
    shape = (64, run.model.latents, run.model.sample, run.model.sample)
    fake = torch.randn(shape, device=device), torch.ones(64, 1, run.model.length, device=device).short()
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        loss(*_batch(fake, batch, run)).backward()
    print(f"[denoiser] compiled in {time.monotonic() - began:.0f} s", flush=True)


def _resume(path: Path, loss: DenoiserLoss, average: Average) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    saved: dict[str, Any] = torch.load(path, map_location=average.values[0].device)
    loss.load_state_dict(saved["model"])
    average.values = [v.float() for v in saved["average"]]
    return int(saved["step"]), float(saved["spent"])


def _save(path: Path, loss: DenoiserLoss, average: Average, step: int, spent: float) -> None:
    """Weights in fp32 and their average in fp16; the optimizer's state is warmed up again."""
    half = [v.half() for v in average.values]
    state = {"model": loss.state_dict(), "average": half, "step": step, "spent": spent}
    save_atomic(path, state)


def _finish(loss: DenoiserLoss, log: Log, step: int, work: Path) -> None:
    for name, part in (("unet", loss.unet), ("text_encoder", loss.text_encoder)):
        state = {k: v.half().contiguous().cpu() for k, v in part.state_dict().items()}
        save_file(state, work / f"{name}.part")
        (work / f"{name}.part").rename(work / f"{name}.safetensors")
    log.add(step=step, finished=True)
