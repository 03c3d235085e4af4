"""What a run does unless it is told otherwise, by kind of adapter and by what its base predicts.

The v-prediction rows are tuned on glyph. The other rows are customary values of the trainers of
Stable Diffusion, SDXL, SD3 and FLUX for adapters of this size; nothing here measured them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from loracomp.bases import BASES, Prediction

Kind = Literal["style", "subject", "accelerator"]

_LARGE = {"rank": 16, "batch": 1, "accumulation": 4, "warmup": 50, "weight_decay": 0.01}
_DISTILLED = {"objective": "distillation", "caption_dropout": 0.0, "terminal_share": 0.1}
_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("style", "v_prediction"): {"rank": 4, "lr": 2e-3, "steps": 180, "batch": 16, "terminal_share": 0.05},
    ("subject", "v_prediction"): {"rank": 4, "lr": 1e-3, "steps": 150, "batch": 16, "terminal_share": 0.05},
    ("style", "epsilon"): {**_LARGE, "lr": 1e-4, "steps": 2000, "min_snr_gamma": 5.0},
    ("subject", "epsilon"): {**_LARGE, "lr": 1e-4, "steps": 1000, "min_snr_gamma": 5.0},
    ("style", "flow"): {**_LARGE, "lr": 1e-4, "steps": 2000},
    ("subject", "flow"): {**_LARGE, "lr": 1e-4, "steps": 1000},
    ("accelerator", "v_prediction"): {**_DISTILLED, "rank": 8, "lr": 1e-3, "steps": 600, "batch": 32},
    ("accelerator", "epsilon"): {**_LARGE, **_DISTILLED, "rank": 64, "lr": 1e-4, "steps": 2000},
    ("accelerator", "flow"): {**_LARGE, **_DISTILLED, "rank": 64, "lr": 1e-4, "steps": 2000},
}
PRESETS: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(_PRESETS)


def prediction_of(base: str) -> Prediction:
    """What the base called ``base`` predicts, found without loading it.

    Known names and their hub ids are looked up; a diffusers folder is asked for its pipeline class
    and scheduler; anything else counts as an epsilon model, as most single-file checkpoints are.
    """
    for row in BASES.values():
        if base in (row.name, row.source):
            return row.prediction
    folder = Path(base)
    if not (folder / "model_index.json").is_file():
        return "epsilon"
    pipeline = _read(folder / "model_index.json").get("_class_name")
    rows = [row for row in BASES.values() if row.pipeline == pipeline]
    if rows and all(row.prediction == "flow" for row in rows):
        return "flow"
    kind = _read(folder / "scheduler" / "scheduler_config.json").get("prediction_type")
    return "v_prediction" if kind == "v_prediction" else "epsilon"


def preset(kind: str, base: str) -> Mapping[str, Any]:
    """Config values for adapters of ``kind`` on ``base``; empty where the kind is unknown."""
    return PRESETS.get((kind, prediction_of(base)), {})


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
