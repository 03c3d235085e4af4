"""What `cmlora`'s cached features cost in quality, by how long they are kept: a curve over intervals.

    python -m benchmarks.cache_curve --adapters FOLDER [--protocol 1+2] [--cells 24] [--steps 25]

At interval k the leading adapter's features are renewed every k steps at both ends of the run and every
k + 1 in its middle, and nobody's get older than ``2 k`` steps. Every row draws the same cells with the same
seeds; *computed* is the share of the adapters' predictions for which the inner blocks are computed at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from loracomp.bases import get_base
from loracomp.evaluation.artwork import open_artwork, read_names
from loracomp.evaluation.cells import PROTOCOLS, choose, prompt
from loracomp.evaluation.judge import open_judge
from loracomp.evaluation.pixels import as_tensor
from loracomp.evaluation.roster import read_roster
from loracomp.evaluation.scores import score
from loracomp.evaluation.statistics import Interval, interval, paired_difference
from loracomp.fusion import Program
from loracomp.library import SHIPPED
from loracomp.loading import defaults, open_base
from loracomp.pipeline import compose
from loracomp.training.glyph.filters import FILTERS

RESULT = Path(__file__).parent / "results" / "cache_curve.json"
INTERVALS = (1, 2, 3, 4, 6, 8, 12)
PAPER = "as the paper"
WHOLE = "no cache"
KEPT = ("subject", "style", "similarity")


def ways(steps: int) -> dict[str, dict[str, Any]]:
    """Options of `cmlora` by what the table calls them."""
    kept = {
        f"interval {k}": {"intervals": [k, k + 1], "staleness": min(2 * k / steps, 1.0)} for k in INTERVALS
    }
    return {WHOLE: {"cached": False}, PAPER: {}, **kept}


def computed(options: dict[str, Any], count: int, steps: int) -> float:
    """Share of the predictions of ``count`` adapters that are computed whole."""
    refresh = Program("cmlora", (1.0,) * count, options).table(steps).refresh
    return 1.0 if refresh is None else float(refresh.float().mean())


def main() -> None:
    """Draws, scores, writes."""
    wanted = _arguments()
    names = read_names()
    roster = read_roster(wanted.adapters, names)
    pipe = open_base("glyph", device=wanted.device)
    known = defaults("glyph", get_base("glyph"))
    settings = {"guidance_scale": known["guidance"], "guidance_rescale": known["guidance_rescale"]}
    judge, artwork = open_judge("glyph", None, str(pipe.device)), open_artwork(FILTERS)
    result: dict[str, Any] = {
        "arguments": {key: str(value) for key, value in vars(wanted).items() if key != "result"},
        "protocols": {},
    }
    for protocol in wanted.protocol:
        cells = choose(protocol, names, roster.has, wanted.cells, "test")
        if not cells:
            sys.exit(f"{protocol}: no cells; name a folder of adapters with subjects and styles")
        rows: dict[str, dict[str, list[float]]] = {way: {} for way in ways(wanted.steps)}
        whole: dict[str, Any] = {}
        for done, cell in enumerate(cells):
            adapters = [roster.adapter(part) for part in cell.parts]
            text = prompt(cell, roster.say(cell.parts))
            for way, options in ways(wanted.steps).items():
                start = time.perf_counter()
                pictures = as_tensor(
                    compose(
                        pipe,
                        text,
                        adapters,
                        Program("cmlora", (1.0,) * len(adapters), options),
                        batch=wanted.seeds,
                        num_inference_steps=wanted.steps,
                        **settings,
                    )
                )
                seconds = time.perf_counter() - start
                if way == WHOLE:
                    whole[cell.id] = pictures
                scores = score(judge, artwork, cell, pictures) | {
                    "seconds": [seconds] * wanted.seeds,
                    "psnr": _psnr(pictures, whole[cell.id]),
                }
                for name in (*KEPT, "seconds", "psnr"):
                    values = rows[way].setdefault(name, [])
                    values += [float("nan") if v is None else v for v in scores[name]]
            print(f"{protocol}: {done + 1} of {len(cells)} cells", file=sys.stderr, flush=True)
        clusters = [cell.cluster for cell in cells for _ in range(wanted.seeds)]
        index = torch.tensor([sorted(set(clusters)).index(cluster) for cluster in clusters])
        result["protocols"][protocol] = [
            {
                "way": way,
                "computed": computed(options, len(cells[0].parts), wanted.steps),
                **_row(rows[way], rows[WHOLE], index),
            }
            for way, options in ways(wanted.steps).items()
        ]
    wanted.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for protocol, table in result["protocols"].items():
        print(protocol, "  computed  subject  style  similarity  PSNR to no cache  time")
        for row in table:
            numbers = [row["computed"], *(row[name][0] for name in KEPT), row["psnr"], row["time"]]
            print(f"{row['way']:>14}", "  ".join(f"{number:.2f}" for number in numbers))


def _psnr(pictures: torch.Tensor, other: torch.Tensor) -> list[float]:
    """Decibels between pictures of the same seeds, at most 60."""
    apart = (pictures - other).square().flatten(1).mean(1).clamp_min(1e-6)
    return (-10 * apart.log10()).tolist()


def _row(ours: dict[str, list[float]], whole: dict[str, list[float]], index: torch.Tensor) -> dict[str, Any]:
    """Scores of a way with intervals, and its differences to the one without a cache."""
    out: dict[str, Any] = {}
    for name in KEPT:
        column, other = torch.tensor(ours[name]), torch.tensor(whole[name])
        out[name] = _ends(interval(column, index))
        out[f"{name} difference"] = _ends(paired_difference(column, other, index))
    out["psnr"] = float(torch.tensor(ours["psnr"]).mean())
    out["time"] = float(torch.tensor(ours["seconds"]).median() / torch.tensor(whole["seconds"]).median())
    return out


def _ends(found: Interval) -> Sequence[float]:
    return [found.mean, found.low, found.high]


def _arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--adapters", type=Path, default=SHIPPED)
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="may be repeated; 1+2")
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--result", type=Path, default=RESULT)
    wanted = parser.parse_args()
    wanted.protocol = wanted.protocol or ["1+2"]
    return wanted


if __name__ == "__main__":
    main()
