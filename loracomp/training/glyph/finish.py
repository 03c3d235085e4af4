"""The last stage: export, sweep of the default settings, figures and sheets."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loracomp.training.glyph.evaluate import (
    Setting,
    best_setting,
    figures,
    generate,
    requests,
    sweep,
)
from loracomp.training.glyph.export import assemble, export
from loracomp.training.glyph.judge import load_judge
from loracomp.training.glyph.sheets import FREE_PROMPTS, write_sheet
from loracomp.training.glyph.store import load

SWEEP = [
    *(Setting(25, g, r) for g in (1.5, 2.0, 3.0, 4.0, 5.0) for r in (0.0, 0.5)),
    *(Setting(s, 3.0, 0.0) for s in (10, 15, 20, 40)),
]


def finish(data: Path, work: Path, tokenizer: Path, device: str, subjects: int = 400) -> dict[str, Any]:
    """Export the trained parts, choose the defaults, and write ``work/figures.json`` and sheets."""
    store = load(data)
    judge = load_judge(work / "judge", device)
    pipe = assemble(work, tokenizer).to(device)
    swept = sweep(pipe, judge, requests(store, subjects // 4, seed=9), SWEEP)
    chosen = best_setting([row for row in swept if row["steps"] == 25])
    size = export(pipe, asdict(chosen), work / "glyph")
    wanted = requests(store, subjects)
    images = generate(pipe, [w.text for w in wanted], chosen)
    found = {"bytes": size, "defaults": asdict(chosen), "pictures": len(wanted)}
    rows = found | figures(judge, images, wanted) | {"sweep": swept}
    (work / "figures.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    write_sheet(images[:96], [w.text[2:] for w in wanted[:96]], work / "sheet.png", columns=12)
    free = generate(pipe, list(FREE_PROMPTS), chosen, seed=1)
    write_sheet(free, list(FREE_PROMPTS), work / "free.png")
    return rows
