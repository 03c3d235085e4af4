"""Whether an adapter mixed from neighbours beats the nearest neighbour alone, measured in pictures.

    python -m benchmarks.synthesis --work FOLDER [--gallery FOLDER …] [--seeds 3]

Six concepts (the folders of ``examples/``) are trained with several seeds each, hidden under meaningless
names among further adapters, indexed and drawn with. Each concept is asked for in words twice: with all
files there (*present*: its neighbours are other seeds of itself), and with its own files left out
(*absent*: they are other things). The base, the nearest adapter and the mixture that `index synthesize` makes
draw the same prompts with the same seeds; the judge says how often the concept is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loracomp.adapter import Adapter
from loracomp.cli.index import searching
from loracomp.cli.index_drawing import draw_all
from loracomp.cli.synthesis import mixable
from loracomp.errors import UsageError
from loracomp.evaluation.artwork import Names, read_names
from loracomp.evaluation.bench import Painter, painter
from loracomp.evaluation.judge import Judge, open_judge
from loracomp.evaluation.pixels import as_tensor
from loracomp.evaluation.statistics import interval, paired_difference
from loracomp.library import open_accelerator
from loracomp.loading import open_base
from loracomp.retrieval.building import build
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.encoder import shipped_encoders
from loracomp.retrieval.filters import Compare, Filter, Not
from loracomp.retrieval.search import Searcher
from loracomp.retrieval.synthesis import synthesize

RESULT = Path(__file__).parent / "results" / "synthesis.json"
EXAMPLES = Path(__file__).parents[1] / "examples"
KNOWN = ("red apple", "cat", "house", "rocket", "pizza", "key", "palm tree", "fish")
"""Things that the base draws, to see a style on."""
LOOKS = ("", "flat style", "line drawing", "in pink")
WAYS = ("base", "nearest", "mixture")


def manifest(work: Path, seeds: int) -> tuple[Path, dict[str, str]]:
    """What `train many` is asked for, and the concept of each file."""
    rows, names = [], {}
    for kind in ("style", "subject"):
        for folder in sorted((EXAMPLES / f"{kind}s").iterdir()):
            for seed in range(seeds):
                name = f"{folder.name}-{seed}"
                names[name] = folder.name
                rows.append(
                    {"name": name, "data": str(folder), "kind": kind, "base": "glyph", "seed": 70 + seed}
                    | {"rank": 8, "steps": 200, "lr": 0.001 if kind == "style" else 0.002, "batch": 2}
                )
    work.mkdir(parents=True, exist_ok=True)
    path = work / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path, names


def hidden(work: Path, trained: Path, more: Sequence[Path]) -> dict[str, str]:
    """The gallery's files without names and metadata; the trained adapter of those that are known."""
    folder, known = work / "gallery", {}
    folder.mkdir(exist_ok=True)
    files = sorted(trained.glob("*.safetensors"))
    for file in [*files, *sorted(file for place in more for file in place.rglob("*.safetensors"))]:
        name = sha256(str(file).encode()).hexdigest()[:12]
        if file in files:
            known[name] = file.stem
        if not (folder / f"{name}.safetensors").exists():
            save_file(load_file(file), folder / f"{name}.safetensors")
    return known


def neighbours(
    searcher: Searcher, text: str, count: int, without: Sequence[str]
) -> tuple[list[Adapter], list[float]]:
    """The nearest adapters and their scores."""
    where: Filter | None = Not(Compare("name", "in", tuple(without))) if without else None
    answer = searcher.text(text, count, where, "glyph")
    return mixable(answer)


def prompts(names: Names, concept: str) -> list[str]:
    """What is drawn to see a concept."""
    if concept in names.looks:
        return [f"a {thing} emoji, {names.looks[concept].phrase}" for thing in KNOWN]
    plain = names.subjects[concept]
    return [", ".join(filter(None, [f"a {plain} emoji", look])) for look in LOOKS for _ in range(2)]


def seen(judge: Judge, names: Names, concept: str, pictures: torch.Tensor) -> list[float]:
    """1 for each picture in which the judge names the concept first."""
    if concept in names.looks:
        return (judge.styles(pictures).argmax(1) == judge.vocabulary.style(concept)).float().tolist()
    return (judge.subjects(pictures).argmax(1) == judge.vocabulary.subject(concept)).float().tolist()


def mixed(near: list[Adapter], scores: list[float], concept: str) -> tuple[dict[str, list[Adapter]], str]:
    """The adapters of each way, and what is said of the mixture; the nearest alone where it is refused."""
    try:
        made, report = synthesize(near, scores, name=concept)
        said = report.advice()
    except UsageError as error:
        made, said = near[0], f"refused: {error}"
    return {"base": [], "nearest": near[:1], "mixture": [made]}, said


def compared(values: dict[str, list[float]], clusters: Sequence[int]) -> dict[str, Any]:
    """Shares in which the concept is seen, and differences to the nearest adapter alone."""
    index, best = torch.tensor(clusters), torch.tensor(values["nearest"])
    table = {}
    for way, hits in values.items():
        column = torch.tensor(hits)
        mean, apart = interval(column, index), paired_difference(column, best, index)
        table[way] = {
            "seen": [mean.mean, mean.low, mean.high],
            "against nearest": [apart.mean, apart.low, apart.high],
        }
    return table


def painted(device: str) -> tuple[Painter, int]:
    """Who draws, with the accelerator, and in how many steps."""
    fast = open_accelerator("accelerator", "glyph")
    assert fast.accelerator is not None
    pipe = open_base("glyph", device=device)
    guidance = fast.accelerator.guidance
    return painter(
        pipe, str(pipe.device), side=128, guidance=guidance, accelerator=fast
    ), fast.accelerator.steps


def main() -> None:
    """Trains, hides, indexes, mixes, draws, compares, writes."""
    wanted = _arguments()
    path, concepts = manifest(wanted.work, wanted.seeds)
    trained = wanted.work / "trained"
    command = [sys.executable, "-m", "loracomp", "train", "many", str(path), "--out", str(trained)]
    subprocess.run([*command, "--device", wanted.device], check=True)
    known = hidden(wanted.work, trained, wanted.gallery)
    collection = Collection(wanted.work / "index", create=True, encoders=shipped_encoders())
    rows = build([wanted.work / "gallery"], collection).rows
    draw_all(collection, "glyph", None, True).check()
    searcher = searching(collection, "glyph", None)
    paint, steps = painted(wanted.device)
    names, judge = read_names(), open_judge("glyph")
    found = {}
    for regime in ("present", "absent"):
        values: dict[str, list[float]] = {way: [] for way in WAYS}
        clusters: list[int] = []
        told = []
        for place, concept in enumerate(sorted(set(concepts.values()))):
            own = [name for name, stem in known.items() if concepts[stem] == concept]
            plain = names.subjects.get(concept) or names.looks[concept].phrase
            near, scores = neighbours(searcher, plain, wanted.count, own if regime == "absent" else ())
            used, said = mixed(near, scores, concept)
            for way in WAYS:
                for text in prompts(names, concept):
                    images, _ = paint(text, used[way], "merge", 1.0, steps, wanted.pictures)
                    values[way] += seen(judge, names, concept, as_tensor(images))
            clusters += [place] * (len(values["base"]) - len(clusters))
            right = sum(adapter.name in own for adapter in near)
            told.append({"concept": concept, "own among neighbours": right, "said": said})
            print(f"{regime}: {concept}", file=sys.stderr, flush=True)
        found[regime] = {"pictures": len(clusters), "ways": compared(values, clusters), "concepts": told}
    facts = {"seeds": wanted.seeds, "count": wanted.count, "adapters": rows, "steps": steps}
    wanted.result.write_text(json.dumps({**facts, **found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({**facts, **found}, indent=1))


def _arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--work", type=Path, required=True, help="for adapters and index; a later run goes on"
    )
    parser.add_argument("--gallery", type=Path, action="append", default=[], help="further glyph adapters")
    parser.add_argument("--seeds", type=int, default=3, help="adapters of each concept")
    parser.add_argument("--count", type=int, default=3, help="neighbours that are mixed")
    parser.add_argument("--pictures", type=int, default=2, help="of each prompt")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
