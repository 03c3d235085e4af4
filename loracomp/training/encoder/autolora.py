"""Training of the AutoLoRA baseline, as published and with its plainest faults mended.

As published (arXiv:2508.02107 and its code): temperature 1, the loss of both directions times 10, 32
adapters a step drawn with replacement, AdamW at 1e-4 without a schedule, about 500 steps, causal mask.
``mended``: learned temperature, no mask, and adapters of one concept are no negatives of each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.formats.layerfile import LayerFile
from loracomp.lowrank import LowRank
from loracomp.retrieval.autolora import AutoLoRA
from loracomp.training.encoder.data import Material
from loracomp.training.encoder.evaluate import Scores, judged
from loracomp.training.encoder.losses import symmetric

BATCH, STEPS, RATE, WEIGHT = 32, 500, 1e-4, 10.0
Layers = dict[int, LowRank]


def load_layers(files: Sequence[Path], material: Material, device: str) -> list[Layers]:
    """The factors of all adapters in half precision, by position in the site table."""
    out = []
    for file in files:
        with LayerFile(file, base=material.table.base) as adapter:
            layers = {material.table.index[path]: layer for path, layer in adapter.layers.items()}
            out.append({place: layer.to(device, torch.float16) for place, layer in layers.items()})
    return out


def train_autolora(
    material: Material,
    adapters: Sequence[Layers],
    vectors: Tensor,
    *,
    mended: bool = False,
    steps: int = STEPS,
    minutes: float = 10.0,
    heads: int = 4,
    layers: int = 2,
    device: str = "cpu",
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> AutoLoRA:
    """Trains the baseline against the text encoder's own vectors of the paraphrases.

    Args:
        material: The corpus.
        adapters: Factors of all its adapters.
        vectors: End-of-text states of all paraphrases, shape (t, width).
        mended: Whether to mend temperature, mask and false negatives.
        steps: Steps at most.
        minutes: Minutes at most.
        heads: Attention heads.
        layers: Depth.
        device: Where to compute.
        seed: Seed of weights and draws.
        say: Called with a line now and then.
    """
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    model = AutoLoRA(material.table.sites, vectors.shape[1], heads, layers, causal=not mended).to(device)
    log_scale = torch.nn.Parameter(torch.tensor(1 / 0.07, device=device).log())
    optimizer = torch.optim.AdamW([*model.parameters(), *([log_scale] if mended else [])], RATE)
    texts = F.normalize(vectors.to(device), dim=1)
    train, start = material.members("train").cpu(), time.monotonic()
    concepts, owners = material.concepts.cpu(), material.spoken.cpu()
    for step in range(steps):
        if time.monotonic() - start > 60 * minutes:
            say(f"stopped after {step} of {steps} steps")
            break
        rows = train[torch.randint(len(train), (BATCH,), generator=draws)]
        chosen = torch.stack([_one(owners, int(concept), draws) for concept in concepts[rows]])
        same = concepts[rows][:, None] == owners[chosen]
        positive = same.to(device) if mended else torch.eye(BATCH, dtype=torch.bool, device=device)
        scale = log_scale.exp().clamp(max=100.0) if mended else 1.0
        found = model([adapters[row] for row in rows.tolist()])
        loss = WEIGHT * 2 * symmetric(found, texts[chosen.to(device)], positive, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            say(f"step {step}: loss {float(loss.detach()):.3f}")
    return model.eval()


def _one(owners: Tensor, concept: int, draws: torch.Generator) -> Tensor:
    """A paraphrase of a concept, at random."""
    there = (owners == concept).nonzero()[:, 0]
    return there[torch.randint(len(there), (), generator=draws)]


@torch.no_grad()
def autolora_report(
    model: AutoLoRA, material: Material, adapters: Sequence[Layers], vectors: Tensor, split: str = "test"
) -> dict[str, Any]:
    """Measurements of the baseline: texts and adapters as queries over all adapters."""
    parts = [model(adapters[start : start + 64]) for start in range(0, len(adapters), 64)]
    gallery = torch.cat(parts).float().cpu()
    plain = material.to("cpu")
    concepts = plain.unseen(split)
    wanted = torch.isin(plain.spoken, concepts).nonzero()[:, 0]
    texts = F.normalize(vectors.cpu()[wanted], dim=1)
    others = torch.isin(plain.concepts, concepts).nonzero()[:, 0]
    return {
        "text": judged(Scores(texts @ gallery.T, plain.spoken[wanted]), plain),
        "adapter": judged(Scores(gallery[others] @ gallery.T, plain.concepts[others], others), plain),
    }
