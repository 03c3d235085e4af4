"""The training loop of the three towers: limited in time, goes on from its last checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import TrainingError
from loracomp.retrieval.encoder import Calibration, LearnedEncoder, Towers
from loracomp.retrieval.towers import EncoderConfig
from loracomp.training.encoder.data import Material
from loracomp.training.encoder.evaluate import balance, calibrate
from loracomp.training.encoder.objective import Drawing, Objective

CHECKPOINT = "last.pt"


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: Steps at most.
        minutes: Minutes at most, over all sessions.
        batch: Adapters per step.
        rate: Largest learning rate.
        decay: Weight decay.
        warm: Steps until the largest rate.
        average: Decay of the averaged weights, in [0, 1).
        jitter: Spread of the logarithm of an adapter's strength.
        noise: Noise on standardized features.
        every: Steps between measurements on unseen concepts.
        patience: Measurements without a gain until the end.
        seed: Seed of weights and draws.
    """

    steps: int = 10_000
    minutes: float = 20.0
    batch: int = 512
    rate: float = 1e-3
    decay: float = 0.05
    warm: int = 300
    average: float = 0.998
    jitter: float = 0.5
    noise: float = 0.1
    every: int = 200
    patience: int = 12
    seed: int = 0


class Run:
    """Everything that a training run consists of, so that it can be written and read back."""

    def __init__(self, material: Material, config: EncoderConfig, settings: Settings, device: str) -> None:
        self.material, self.settings, self.device = material.to(device), settings, device
        torch.manual_seed(settings.seed)
        self.towers = Towers(config).to(device)
        self._standardize()
        self.average = Towers(config).to(device)
        self.average.load_state_dict(self.towers.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.towers.parameters(), settings.rate, weight_decay=settings.decay, betas=(0.9, 0.98)
        )
        self.draws = torch.Generator().manual_seed(settings.seed)
        self.noise = torch.Generator(device).manual_seed(settings.seed)
        how = Drawing(settings.batch, settings.jitter, settings.noise)
        self.objective = Objective(self.material, self.towers, how, self.draws, self.noise)
        self.step, self.seconds, self.best, self.waited = 0, 0.0, -1.0, 0
        self.kept = {key: value.clone() for key, value in self.towers.state_dict().items()}
        self.history: list[dict[str, float]] = []

    @torch.no_grad()
    def _standardize(self) -> None:
        """Middle and spread of each layer's numbers over the training adapters that change it; the base."""
        self.towers.common.copy_(self.material.common)
        if self.towers.drawn is not None:
            if self.material.plain is None:
                raise TrainingError("nothing was drawn with the adapters; draw first, or train without")
            self.towers.drawn.plain.copy_(self.material.plain.float() / 255)
        if self.towers.adapter is None:
            return
        rows = self.material.rows[self.material.members("train")]
        present = rows.present[..., None].float()
        count = present.sum(0).clamp_min(1)
        tower = self.towers.adapter
        total = torch.zeros_like(tower.middle)
        squares = torch.zeros_like(tower.middle)
        for start in range(0, len(rows), 64):
            part = rows.sites[start : start + 64].float() * present[start : start + 64]
            total += part.sum(0)
            squares += part.square().sum(0)
        tower.middle.copy_(total / count)
        spread = (squares / count - tower.middle.square()).clamp_min(0).sqrt()
        tower.spread.copy_(torch.where(spread > 1e-4, spread, 1.0))

    def rate(self) -> float:
        """Share of the largest learning rate at this step: linear warm-up, then a half cosine."""
        done = max(self.step / self.settings.steps, self.seconds / (60 * self.settings.minutes))
        return min((self.step + 1) / self.settings.warm, 0.5 * (1 + cos(pi * min(done, 1.0))) + 0.01)

    def advance(self) -> float:
        """One step; the loss."""
        self.towers.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self.rate()
        loss = self.objective()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.towers.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            share = min(self.settings.average, (self.step + 1) / (self.step + 10))
            for kept, new in zip(self.average.parameters(), self.towers.parameters(), strict=True):
                kept.lerp_(new, 1 - share)
        self.step += 1
        return float(loss.detach())

    def measure(self) -> float:
        """Recall@10 plus MRR of texts of unseen validation concepts; keeps the best weights."""
        self.average.eval()
        found = balance(self.average, self.material)
        value = found["recall@10"].mean + found["mrr"].mean
        self.history.append(
            {
                "step": self.step,
                **{name: i.mean for name, i in found.items()},
                "share": float(self.average.share),
            }
        )
        if value > self.best:
            self.best, self.waited = value, 0
            self.kept = {key: tensor.clone() for key, tensor in self.average.state_dict().items()}
        else:
            self.waited += 1
        return value

    def save(self, path: Path) -> None:
        """Writes a checkpoint that is there in whole or not at all."""
        state: dict[str, Any] = {
            "towers": self.towers.state_dict(), "average": self.average.state_dict(), "kept": self.kept,
            "optimizer": self.optimizer.state_dict(), "draws": self.draws.get_state(),
            "noise": self.noise.get_state(), "torch": self._dropout(), "step": self.step,
            "seconds": self.seconds, "best": self.best, "waited": self.waited, "history": self.history,
            "settings": asdict(self.settings),
        }  # fmt: skip
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def _dropout(self, state: Tensor | None = None) -> Tensor:
        """State of the random numbers that dropout takes, set first where one is given."""
        if self.device.startswith("cuda"):
            if state is not None:
                torch.cuda.set_rng_state(state, self.device)
            return torch.cuda.get_rng_state(self.device)
        if state is not None:
            torch.set_rng_state(state)
        return torch.get_rng_state()

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint; raises :class:`TrainingError` for one of another run."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            before = {**state["settings"], "minutes": 0, "steps": 0}
            if before != {**asdict(self.settings), "minutes": 0, "steps": 0}:
                raise TrainingError(f"{path}: made with other settings; use the same or another --out")
            self.towers.load_state_dict(state["towers"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.draws.set_state(state["draws"].cpu())
            self.noise.set_state(state["noise"].cpu())
            self._dropout(state["torch"].cpu())
            self.kept, self.history = state["kept"], state["history"]
            self.step, self.seconds = state["step"], state["seconds"]
            self.best, self.waited = state["best"], state["waited"]
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"{path}: cannot be gone on from ({error}); delete it to start anew"
            ) from error


def train(
    material: Material,
    config: EncoderConfig,
    settings: Settings,
    out: Path,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> LearnedEncoder:
    """Trains the towers; stops at the limits, or when unseen concepts are not found better any more.

    Args:
        material: The corpus.
        config: Shape of the networks.
        settings: How to train.
        out: Folder for the checkpoint and ``history.json``.
        device: Where to compute.
        say: Called with a line now and then.

    Returns:
        The encoder of the best measurement, calibrated on the validation split, on the CPU.
    """
    out.mkdir(parents=True, exist_ok=True)
    run = Run(material, config, settings, device)
    if (out / CHECKPOINT).is_file():
        run.load(out / CHECKPOINT)
        say(f"going on from step {run.step}")
    last = time.monotonic()
    while run.step < settings.steps and run.seconds < 60 * settings.minutes:
        if run.waited >= settings.patience:
            break
        loss = run.advance()
        now = time.monotonic()
        run.seconds, last = run.seconds + now - last, now
        if run.step % settings.every == 0:
            value = run.measure()
            run.save(out / CHECKPOINT)
            say(f"step {run.step}: loss {loss:.3f}, validation {value:.3f}, {run.seconds / 60:.1f} min")
    if not run.history or run.history[-1]["step"] != run.step:
        run.measure()
    run.save(out / CHECKPOINT)
    (out / "history.json").write_text(json.dumps(run.history, indent=1))
    towers = Towers(config)
    towers.load_state_dict({key: value.cpu() for key, value in run.kept.items()})
    slope, offset = calibrate(towers.eval(), material.to("cpu"))
    words = material.words | (material.wide.words if material.wide is not None else frozenset())
    return LearnedEncoder(towers, Calibration(slope, offset), words=words)
