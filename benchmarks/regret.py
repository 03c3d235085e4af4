"""What it costs a picture that its adapters were found and not known: GlyphBench with retrieved adapters.

    python -m benchmarks.regret --adapters FOLDER [--gallery FOLDER …] [--named] [--cells 24] [--work FOLDER]

All adapters are copied under meaningless names without any metadata (with ``--named`` they keep both),
indexed and drawn with. Every cell of the test split is asked for in plain words, and drawn in four ways with
the same seeds:

* *oracle*: the adapters that the cell is made of;
* *auto*: what ``compose --auto`` chooses, parts of the prompt left to the base where nothing stands out;
* *first hit*: the first hit for the words of each part, however unsure;
* *no LoRA*: the base alone.

The method is plain ``merge`` throughout, and triggers are said for the adapters that are used, right or
wrong. Target: subject and style accuracy of what is found within 5 points of the oracle's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loracomp.adapter import Adapter
from loracomp.bases import get_base
from loracomp.cli.index import searching
from loracomp.cli.index_drawing import draw_all
from loracomp.evaluation.artwork import open_artwork, read_names
from loracomp.evaluation.bench import Painter, painter
from loracomp.evaluation.cells import Cell, choose, plainly, prompt
from loracomp.evaluation.judge import open_judge
from loracomp.evaluation.pixels import as_tensor
from loracomp.evaluation.roster import Part, Roster, read_roster
from loracomp.evaluation.scores import score
from loracomp.evaluation.statistics import interval, paired_difference
from loracomp.formats import load
from loracomp.library import SHIPPED, open_accelerator
from loracomp.loading import defaults, open_base
from loracomp.retrieval import auto
from loracomp.retrieval.building import build
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.encoder import shipped_encoders
from loracomp.retrieval.search import Searcher
from loracomp.training.glyph.filters import FILTERS

RESULT = Path(__file__).parent / "results" / "regret.json"
WAYS = ("oracle", "auto", "first hit", "no LoRA")
KEPT = ("subject", "style", "similarity")


@dataclass(frozen=True)
class Found:
    """Adapters for a cell: the benchmark's own by part, others by file."""

    parts: tuple[Part, ...]
    others: tuple[Path, ...] = ()


class Gallery:
    """The hidden files, and what each of them is."""

    def __init__(self, folder: Path, roster: Roster, more: Sequence[Path], named: bool) -> None:
        self.folder, self.named = folder, named
        self.parts: dict[str, Part] = {}
        self.files: dict[str, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for part, member in roster.members.items():
            self.parts[self._hide(member.file)] = part
        for file in sorted({file for place in more for file in place.rglob("*.safetensors")}):
            self._hide(file)

    def _hide(self, file: Path) -> str:
        name = file.stem if self.named else sha256(str(file).encode()).hexdigest()[:12]
        target = self.folder / f"{name}.safetensors"
        self.files[name] = file
        if not target.exists() and self.named:
            shutil.copyfile(file, target)
        elif not target.exists():
            save_file(load_file(file), target)
        return name


class Finder:
    """Asks the index."""

    def __init__(self, gallery: Gallery, searcher: Searcher, roster: Roster) -> None:
        self.gallery, self.searcher, self.roster = gallery, searcher, roster
        self.plain = plainly(roster.names)

    def __call__(self, way: str, cell: Cell) -> Found:
        """The adapters of a cell in one of the ways."""
        if way == "no LoRA":
            return Found(())
        if way == "oracle":
            return Found(cell.parts)
        if way == "auto":
            text = prompt(cell, self.plain)
            chosen = auto.choose(text, self.searcher, lambda path: load(path), base="glyph").adapters
            return self._found([Path(adapter.path).stem for adapter in chosen])
        words = [self.plain(kind, name) for kind, name in cell.parts]
        return self._found([self.searcher.text(text, 1, base="glyph").hits[0].row["name"] for text in words])

    def _found(self, names: Sequence[str]) -> Found:
        names = list(dict.fromkeys(names))
        ours = tuple(self.gallery.parts[name] for name in names if name in self.gallery.parts)
        return Found(ours, tuple(self.gallery.files[n] for n in names if n not in self.gallery.parts))


def wording(cell: Cell, found: Found, roster: Roster) -> str:
    """The cell's prompt with the triggers of the adapters that are used."""
    text = prompt(cell, roster.say(found.parts))
    wrong = [roster.members[part].trigger for part in found.parts if part not in cell.parts]
    return ", ".join([text, *(word for word in wrong if word)])


def adapters(found: Found, roster: Roster) -> list[Adapter]:
    """The adapters, opened."""
    return [*(roster.adapter(part) for part in found.parts), *(load(file) for file in found.others)]


def painted(wanted: argparse.Namespace) -> tuple[Painter, str]:
    """Who draws, and on what device."""
    pipe = open_base("glyph", device=wanted.device)
    known = defaults("glyph", get_base("glyph"))
    guidance, rescale, fast = known["guidance"], known["guidance_rescale"], None
    if wanted.accelerator:
        fast = open_accelerator(wanted.accelerator, "glyph")
        assert fast.accelerator is not None
        guidance, rescale, wanted.steps = fast.accelerator.guidance, 0.0, fast.accelerator.steps
    device = str(pipe.device)
    return painter(
        pipe, device, side=128, guidance=guidance, guidance_rescale=rescale, accelerator=fast
    ), device


def main() -> None:
    """Hides, indexes, finds, draws, compares, writes."""
    wanted = _arguments()
    names = read_names()
    roster = read_roster(wanted.adapters, names)
    cells = [c for p in wanted.protocol for c in choose(p, names, roster.has, wanted.cells, "test")]
    if not cells:
        sys.exit("no cells; name a folder of adapters with subjects and styles")
    gallery = Gallery(wanted.work / "gallery", roster, wanted.gallery, wanted.named)
    collection = Collection(wanted.work / "index", create=True, encoders=shipped_encoders())
    built = build([gallery.folder], collection)
    draw_all(collection, "glyph", None, True).check()
    finder = Finder(gallery, searching(collection, "glyph", None), roster)
    paint, device = painted(wanted)
    judge, artwork = open_judge("glyph", None, device), open_artwork(FILTERS)
    values: dict[str, dict[str, list[float]]] = {way: {name: [] for name in KEPT} for way in WAYS}
    right = {way: [0, 0, 0] for way in WAYS}
    clusters: list[str] = []
    for done, cell in enumerate(cells):
        for way in WAYS:
            found = finder(way, cell)
            right[way][0] += sum(part in cell.parts for part in found.parts)
            right[way][1] += sum(part not in cell.parts for part in found.parts) + len(found.others)
            right[way][2] += len(cell.parts)
            text = wording(cell, found, roster)
            used = adapters(found, roster)
            images, _ = paint(text, used, "merge", 1.0, wanted.steps, wanted.seeds)
            scores = score(judge, artwork, cell, as_tensor(images))
            for name in KEPT:
                values[way][name] += [float("nan") if v is None else v for v in scores[name]]
            if wanted.pictures and done < 16:
                wanted.pictures.mkdir(parents=True, exist_ok=True)
                images[0].save(wanted.pictures / f"{done:02d}-{way.replace(' ', '-')}.png")
        clusters += [cell.cluster] * wanted.seeds
        print(f"{done + 1} of {len(cells)} cells", file=sys.stderr, flush=True)
    result = {
        "arguments": {k: str(v) for k, v in vars(wanted).items() if k not in ("work", "result", "pictures")},
        "adapters": built.rows,
        "cells": len(cells),
        "pictures": len(clusters),
        "ways": {way: _row(values, way, clusters, right[way]) for way in WAYS},
    }
    before = json.loads(wanted.result.read_text()) if wanted.result.is_file() else {}
    table = {**before, "named" if wanted.named else "hidden": result}
    wanted.result.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _row(
    values: dict[str, dict[str, list[float]]], way: str, clusters: Sequence[str], right: Sequence[int]
) -> dict[str, Any]:
    """Accuracies of a way with intervals, and its differences to the oracle's."""
    index = torch.tensor([sorted(set(clusters)).index(cluster) for cluster in clusters])
    out: dict[str, Any] = {"right": right[0], "wrong": right[1], "wanted": right[2]}
    for name in KEPT:
        column, best = torch.tensor(values[way][name]), torch.tensor(values["oracle"][name])
        found, apart = interval(column, index), paired_difference(column, best, index)
        out[name] = [found.mean, found.low, found.high]
        out[f"{name} regret"] = [-apart.mean, -apart.high, -apart.low]
    return out


def _arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--adapters", type=Path, default=SHIPPED)
    parser.add_argument("--gallery", type=Path, action="append", default=[], help="further glyph adapters")
    parser.add_argument("--protocol", action="append", help="may be repeated; 1+1 and 1+2")
    parser.add_argument("--named", action="store_true", help="files keep their names and metadata")
    parser.add_argument("--cells", type=int, default=24, help="of each protocol")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument(
        "--accelerator", default="", help="NAME_OR_FILE, on in every picture at its own steps"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, help="keeps gallery and index; a temporary folder if left out")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each of the first cells")
    parser.add_argument("--result", type=Path, default=RESULT)
    wanted = parser.parse_args()
    wanted.protocol = wanted.protocol or ["1+1", "1+2"]
    if not wanted.work:
        wanted.work = Path(tempfile.mkdtemp(prefix="regret-"))
        import atexit

        atexit.register(shutil.rmtree, wanted.work, ignore_errors=True)
    return wanted


if __name__ == "__main__":
    main()
