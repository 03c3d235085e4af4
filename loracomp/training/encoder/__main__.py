"""Train and measure an encoder: ``python -m loracomp.training.encoder COMMAND CORPUS --help``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from loracomp.errors import LoracompError, TrainingError


def main(arguments: list[str] | None = None) -> None:
    """Parse one command and run it."""
    parser = argparse.ArgumentParser(prog="python -m loracomp.training.encoder")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (run, about) in _COMMANDS.items():
        command = commands.add_parser(name, help=about)
        command.set_defaults(run=run)
        command.add_argument("corpus", type=Path, help="folder of the corpus")
        command.add_argument("--index", type=Path, required=True, help="folder of features, made if missing")
        command.add_argument("--out", type=Path, required=True, help="folder to write")
        command.add_argument("--base", default="glyph")
        command.add_argument("--base-folder", type=Path, help="the base in diffusers format")
        command.add_argument("--minutes", type=float, default=20.0)
        command.add_argument("--steps", type=int, default=10_000)
        command.add_argument("--batch", type=int, default=512)
        command.add_argument("--every", type=int, default=200, help="steps between measurements")
        command.add_argument("--width", type=int, default=96)
        command.add_argument("--layers", type=int, default=2)
        command.add_argument("--split", default="test", choices=("validation", "test"))
        command.add_argument("--jobs", type=int, help="processes that read adapters")
        command.add_argument("--without", choices=("weights", "drawn"), help="a way of reading to leave out")
        command.add_argument("--wide", type=int, default=20_000, help="concepts of words and pictures alone")
        command.add_argument(
            "--words", default="all", choices=("all", "train"), help="what these are made of"
        )
        command.add_argument("--artwork", type=Path, default=Path(".data"), help="folder of icons.json.xz")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device")
    args = parser.parse_args(arguments)
    args.device = args.device or _device()
    try:
        args.run(args)
    except LoracompError as error:
        print(f"loracomp: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _prepared(args: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Corpus, collection, text encoder and tensors; features that are missing are made."""
    from loracomp.retrieval.bank import token_states
    from loracomp.training.encoder.data import material, read_corpus

    corpus = read_corpus(args.corpus)
    collection = _collected(args, corpus, args.index)
    folder = _folder(args)
    states = token_states(args.base, folder)
    return corpus, collection, folder, material(corpus, collection, args.base, states)


def _collected(args: argparse.Namespace, corpus: Any, place: Path) -> Any:
    """Features of a corpus's files, and what they draw; what is missing is made."""
    from loracomp.retrieval.building import build
    from loracomp.retrieval.collection import Collection

    collection = Collection(place, create=True, indexed=False)
    files = [entry.file for entry in corpus.entries]
    done = build(files, collection, base=args.base, base_folder=args.base_folder, jobs=args.jobs)
    print(f"features: {done.added} new, {done.unchanged} there, {len(done.dead)} not readable")
    if args.without != "drawn":
        _drawn(args, collection)
    return collection


def _folder(args: argparse.Namespace) -> Path:
    """Where the base is."""
    from loracomp.formats import shipped_folder

    folder: Path | None = args.base_folder or shipped_folder(args.base)
    if folder is None:
        raise TrainingError(f"{args.base}: name its folder with --base-folder")
    return folder


def _artist(args: argparse.Namespace) -> Any:
    """The base, ready to draw with one adapter at a time."""
    from loracomp.alone import open_alone

    return open_alone(args.base, str(args.base_folder or args.base), device=args.device)


def _drawn(args: argparse.Namespace, collection: Any) -> None:
    """Draws with the adapters that were not drawn with yet."""
    from loracomp.retrieval.drawing import draw, undrawn

    if args.base not in undrawn(collection):
        return
    done = draw(collection, _artist(args))
    print(f"drawings: {done.drawn} new, {len(done.failed)} failed")


def _further(args: argparse.Namespace, found: Any) -> Any:
    """The material with what the base draws, and with words and pictures of many more concepts."""
    import torch.nn.functional as F

    from loracomp.retrieval.drawn import base_drawings
    from loracomp.retrieval.towers import PICTURE
    from loracomp.training.encoder import wide

    plain = base_drawings(_artist(args))
    small = F.interpolate(plain.float(), size=PICTURE, mode="area").round().to(plain.dtype)
    found = replace(found, plain=small)
    return replace(found, wide=wide.load(_wide(args, plain))) if args.wide else found


def _wide(args: argparse.Namespace, plain: Any = None) -> Path:
    """The file of further words and pictures; made where it is missing."""
    from loracomp.retrieval.bank import make_bank, token_states
    from loracomp.retrieval.drawn import base_drawings
    from loracomp.training.corpus.store import read_plan
    from loracomp.training.encoder import wide
    from loracomp.training.glyph import store

    kept: Path = args.out / f"wide-{args.words}-{args.wide}.safetensors"
    if kept.is_file():
        return kept
    plain = base_drawings(_artist(args)) if plain is None else plain
    artwork = store.load(args.artwork)
    concepts = wide.random_concepts(artwork, read_plan(args.corpus).concepts, args.wide, args.words)
    states = token_states(args.base, _folder(args), args.device)
    common = make_bank(args.base, _folder(args)).common
    args.out.mkdir(parents=True, exist_ok=True)
    wide.save(wide.gathered(concepts, artwork, plain, states, common, args.jobs or 1), kept)
    return kept


def _ahead(args: argparse.Namespace) -> None:
    print(_wide(args))


def _train(args: argparse.Namespace) -> None:
    import torch

    from loracomp.retrieval.towers import EncoderConfig
    from loracomp.training.encoder.train import Settings, train

    torch.set_float32_matmul_precision("high")
    _, collection, _, found = _prepared(args)
    reads = {"weights": args.without != "weights", "drawn": args.without != "drawn"}
    if reads["drawn"]:
        found = _further(args, found)
    width = collection.banks[args.base].width
    config = EncoderConfig(args.base, width, args.width, args.layers, **reads)
    settings = Settings(args.steps, args.minutes, args.batch, every=args.every, seed=args.seed)
    encoder = train(found, config, settings, args.out, args.device)
    path = args.out / f"{args.base}.safetensors"
    encoder.save(path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {encoder.name}")


def _evaluate(args: argparse.Namespace) -> None:
    from loracomp.retrieval.encoder import load_encoder
    from loracomp.retrieval.towers import batch
    from loracomp.training.encoder.data import halved, stored
    from loracomp.training.encoder.evaluate import report

    corpus, collection, _, found = _prepared(args)
    towers = load_encoder(args.out / f"{args.base}.safetensors").towers
    half = halved(corpus, args.base, args.index / "halved")
    rows = stored(half, _collected(args, half, args.index / "halved-index"))
    poorer = batch([row.features for row in rows], collection.banks[args.base].width)
    _write(args.out / f"{args.split}.json", report(towers, found, args.split, poorer))


def _baselines(args: argparse.Namespace) -> None:
    from loracomp.retrieval.bank import text_states
    from loracomp.training.encoder.autolora import autolora_report, load_layers, train_autolora
    from loracomp.training.encoder.baselines import baselines
    from loracomp.training.encoder.data import stored

    corpus, collection, folder, found = _prepared(args)
    rows = stored(corpus, collection)
    texts = [text for name in found.names for text in corpus.paraphrases[name]]
    layers = load_layers(found.files, found, args.device)
    features, facts = [row.features for row in rows], [row.facts for row in rows]
    bank = collection.banks[args.base]
    numbers = baselines(found, features, facts, texts, bank, layers, args.split)
    ends = text_states(args.base, folder, end=True)(texts).float()
    for name, mended in (("AutoLoRA", False), ("AutoLoRA, mended", True)):
        steps = min(args.steps, 500)
        model = train_autolora(
            found, layers, ends, mended=mended, steps=steps, minutes=args.minutes, device=args.device
        )
        numbers[name] = autolora_report(model, found, layers, ends, args.split)
    _write(args.out / f"baselines-{args.split}.json", numbers)


def _map(args: argparse.Namespace) -> None:
    from loracomp.retrieval.encoder import load_encoder
    from loracomp.training.encoder.evaluate import adapter_vectors
    from loracomp.training.encoder.map import draw_map, layout

    corpus, _, _, found = _prepared(args)
    towers = load_encoder(args.out / f"{args.base}.safetensors").towers
    shown = [next(iter(corpus.pictures[entry.concept]), None) for entry in corpus.entries]
    path = args.out / "map.png"
    draw_map(layout(adapter_vectors(towers, found.rows)), shown).save(path, optimize=True)
    print(path)


def _write(path: Path, numbers: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    for name, found in numbers.items():
        for part, values in ({name: found} if "mrr" in found else found).items():
            label = name if part == name else f"{name}, {part}"
            figures = ", ".join(f"{k} {values[k]['mean']:.3f}" for k in ("recall@1", "recall@10", "mrr"))
            print(f"{label}: {figures}, abstention {values['abstention_auroc']['mean']:.3f}")
    print(path)


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str]] = {
    "further": (_ahead, "make the words and pictures without adapters ahead of training"),
    "train": (_train, "train the three towers; goes on where it stopped"),
    "evaluate": (_evaluate, "measure a trained encoder on unseen concepts"),
    "map": (_map, "draw the corpus as a map of thumbnails"),
    "baselines": (_baselines, "train and measure what it is held against"),
}

if __name__ == "__main__":
    main()
