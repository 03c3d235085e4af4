"""What the measurements of adapters are worth: ``python -m benchmarks.profiles --adapters FOLDER``.

Two questions, for every adapter in the folder:

* Can the frequency score be told from the weights alone? Spearman's rank correlation over adapters of each
  candidate with the sampled score, and with the change of the decoded pictures' spectra.
* Does half the effect stay half? The effect curve is fitted on the default prompts, seeds and steps; then the
  weight of half the effect is drawn on other prompts, seeds and steps, and its effect compared with half of
  weight 1's; beside it what half the weight gives.

Adapters are profiled where they are not yet (see ``loracomp profile``). ``--tiny`` takes three adapters and
few pictures. Writes ``benchmarks/results/profiles.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from loracomp.adapter import Adapter
from loracomp.fusion.effect import distance
from loracomp.fusion.interference import block_of
from loracomp.library import open_adapter
from loracomp.loading import open_base
from loracomp.lowrank import LowRank, norm
from loracomp.pipeline.measured import Measured
from loracomp.pipeline.profiling import profile
from loracomp.pipeline.sampling import Setting, sample

RESULT = Path(__file__).parent / "results" / "profiles.json"
ELSEWHERE = Setting(("a cat face, {words}", "a cup of tea, {words}"), seeds=8, steps=16, first=1000)
"""Prompts, seeds and a number of steps that no curve was fitted on."""
GRID = 16


def proxies(adapter: Adapter) -> dict[str, float]:
    """Candidates for a frequency score from the weights alone."""
    energy: dict[str, float] = {}
    attention = cross = 0.0
    for path, layer in adapter.layers.items():
        size = norm(layer) ** 2
        energy[block_of(path)] = energy.get(block_of(path), 0.0) + size
        attention += size if "attn" in path else 0.0
        cross += size if "attn2" in path else 0.0
    total = sum(energy.values())

    def share(*starts: str) -> float:
        return sum(value for name, value in energy.items() if name.startswith(starts)) / total

    return {
        "norm": total**0.5,
        "shallow blocks": share("down.0", "up.2"),
        "deep blocks": share("mid", "down.2", "up.0"),
        "way up": share("up"),
        "last block": share("up.2"),
        "first block": share("down.0"),
        "attention": attention / total,
        "cross-attention": cross / total,
        "kernels": kernel_share(adapter),
    }


def kernel_share(adapter: Adapter) -> float:
    """Share of the convolutions' energy at spatial frequencies above a fifth of the largest."""
    places = torch.fft.fftfreq(GRID, dtype=torch.float64) * GRID
    radius = (places[:, None].square() + places.square()).sqrt()
    inside, high = radius <= GRID / 2, (radius <= GRID / 2) & (radius > 0.2 * GRID / 2)
    parts = [_kernel_energy(layer) for layer in adapter.layers.values() if layer.down.shape[2:] == (3, 3)]
    if not parts:
        return float("nan")
    whole = torch.stack(parts).sum(0)
    return float(whole[high].sum() / whole[inside].sum())


def _kernel_energy(layer: LowRank) -> torch.Tensor:
    """‖ΔW(f)‖² at each spatial frequency: tr(UᵀU D(f) D(f)*), shape (GRID, GRID)."""
    up = layer.up.flatten(1).double() * layer.scale
    waves = torch.fft.fft2(layer.down.double(), s=(GRID, GRID)).flatten(2)
    grams = torch.einsum("rcf,scf->frs", waves, waves.conj())
    return (grams * (up.T @ up).to(grams.dtype)).sum((1, 2)).real.view(GRID, GRID)


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation, in [-1, 1]; ties in order of appearance."""
    ranks = [torch.tensor(v, dtype=torch.float64).argsort().argsort().double() for v in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def correlations(adapters: list[Adapter], known: list[Measured]) -> dict[str, Any]:
    """Rank correlation of each proxy with the sampled scores."""
    found = [proxies(adapter) for adapter in adapters]
    profiles = [measured.frequency for measured in known]
    sampled = {
        "latents": [p.score for p in profiles if p],
        "pictures": [p.picture for p in profiles if p],
    }
    rows: dict[str, Any] = {
        name: {to: spearman([f[name] for f in found], values) for to, values in sampled.items()}
        for name in found[0]
    }
    return rows | {"latents with pictures": spearman(sampled["latents"], sampled["pictures"])}


def transfer(pipe: Any, adapter: Adapter, known: Measured, setting: Setting) -> dict[str, float]:
    """Effects elsewhere, in units of that of weight 1."""
    assert known.effect is not None
    prompts, half = setting.prompts(adapter), known.effect.share(0.5)
    plain = sample(pipe, setting, prompts, [adapter], 0.0).pictures

    def effect(weight: float) -> float:
        return float(distance(sample(pipe, setting, prompts, [adapter], weight).pictures, plain).mean())

    unit = effect(1.0)
    return {
        "weight": half,
        "of half the effect": effect(half) / unit,
        "of half the weight": effect(0.5) / unit,
    }


def main() -> None:
    """Profiles, correlates, tries the curves elsewhere, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-effect", action="store_true", help="leave the effect curves out")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--tiny", action="store_true")
    wanted = parser.parse_args()
    opened = [open_adapter(str(file)) for file in sorted(wanted.adapters.glob("*.safetensors"))]
    adapters = [adapter for adapter in opened if adapter.accelerator is None]
    own, elsewhere, effect = Setting(), ELSEWHERE, not wanted.no_effect
    if wanted.tiny:
        adapters, own = adapters[:3], Setting(seeds=1, steps=2)
        elsewhere = Setting(ELSEWHERE.scenes, 1, 3, first=1000)
    pipe, known, rows = open_base("glyph", device=wanted.device), [], []
    for adapter in adapters:
        found = profile(pipe, adapter, effect=effect, folders=[wanted.adapters], setting=own)
        known.append(found)
        assert found.frequency is not None
        row: dict[str, Any] = {"name": adapter.name, "kind": adapter.metadata.get("modelspec.tags", "")}
        row["frequency"] = found.frequency.to_parts()
        if effect:
            row["transfer"] = transfer(pipe, adapter, found, elsewhere)
        rows.append(row)
        print(json.dumps({"name": row["name"], **row.get("transfer", {})}), file=sys.stderr, flush=True)
    result = {"adapters": rows, "correlations": correlations(adapters, known)}
    wanted.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["correlations"], indent=1))


if __name__ == "__main__":
    main()
