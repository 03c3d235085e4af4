"""The recipe's commands, in order: ``python -m loracomp.training.glyph COMMAND --help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

DATA = Path(".data")


def main(arguments: list[str] | None = None) -> None:
    """Parse one command and run it."""
    parser = argparse.ArgumentParser(prog="python -m loracomp.training.glyph")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (run, about) in _COMMANDS.items():
        command = commands.add_parser(name, help=about)
        command.set_defaults(run=run)
        command.add_argument("--data", type=Path, default=DATA, help="folder of icons.json.xz")
        command.add_argument("--work", type=Path, default=DATA / "work", help="checkpoints, logs")
        command.add_argument("--tokenizer", type=Path, default=DATA / "tokenizer")
        command.add_argument("--out", type=Path, help="folder to write, where it is not --work")
        command.add_argument("--minutes", type=float, default=6.0)
        command.add_argument("--variants", type=int, default=6, help="renderings of each icon")
        command.add_argument("--workers", type=int, default=2)
        command.add_argument("--batch", type=int, help="pictures a step, over all GPUs")
        command.add_argument("--vision", default="resnet", help="the judge's vision tower")
        command.add_argument("--model", type=Path, default=DATA / "out/glyph")
        command.add_argument("--judge", type=Path, default=DATA / "out/judge")
        command.add_argument("--subjects", type=int, default=400)
        command.add_argument("--gpus", type=int, default=1)
        command.add_argument("--device", default=None)
        for stage, minutes in (("vae", 6.0), ("judge", 5.5), ("denoiser", 11.0)):
            command.add_argument(f"--{stage}-minutes", type=float, default=minutes)
    args = parser.parse_args(arguments)
    args.device = args.device or _device()
    if args.device.startswith("cuda"):
        _tune()
    args.run(args)


def _tune() -> None:
    """Lets cuDNN time its convolutions: every stage trains on pictures of one size."""
    import torch

    torch.backends.cudnn.benchmark = True


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _data(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.store import build

    print(build(args.out or args.data))


def _examples(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.examples import write_examples
    from loracomp.training.glyph.store import load

    store = load(args.data)
    write_examples(args.out or Path("examples"), store.icons, store.subjects)


def _adapters(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.adapters import write_adapters
    from loracomp.training.glyph.store import load

    write_adapters(args.out or args.data / "adapters", load(args.data))


def _manifest(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.manifest import write_manifest
    from loracomp.training.glyph.store import load

    folder = args.out or Path(__file__).parent / "splits"
    write_manifest(load(args.data), folder / "manifest.json.xz")


def _render(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.pictures import render_store

    render_store(args.data, args.work, args.variants, args.workers)


def _vae(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.pictures import load_pictures
    from loracomp.training.glyph.vae_train import VaeRun, train_vae

    compiled = args.device != "cpu"
    run = VaeRun(args.minutes, args.batch or 128, compile=compiled)
    train_vae(run, lambda: load_pictures(args.data, args.work, args.device), args.work, args.device)


def _judge(args: argparse.Namespace) -> None:
    from loracomp.evaluation.glyph_judge import JudgeConfig
    from loracomp.training.glyph.judge_train import JudgeRun, train_judge
    from loracomp.training.glyph.pictures import load_pictures

    compiled = args.device != "cpu"
    model = JudgeConfig(args.vision)
    run = JudgeRun(args.minutes, args.batch or 768, compile=compiled, model=model)
    words = args.tokenizer / "tokenizer.json"

    out = args.out or args.work
    train_judge(run, lambda: load_pictures(args.data, args.work, args.device), words, out, args.device)


def _latents(args: argparse.Namespace) -> None:
    from tokenizers import Tokenizer

    from loracomp.training.glyph.latents import make_latents
    from loracomp.training.glyph.pictures import load_pictures

    words = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    make_latents(load_pictures(args.data, args.work, args.device), words, args.work)


def _denoiser(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.denoiser_train import DenoiserRun, train_denoiser

    compiled = args.device != "cpu"
    run = DenoiserRun(args.minutes, args.batch or 1024, compile=compiled)
    train_denoiser(run, args.work, args.device)


def _finish(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.finish import finish

    finish(args.data, args.work, args.tokenizer, args.device)


def _score(args: argparse.Namespace) -> None:
    import json

    from loracomp.training.glyph.score import score

    found = score(args.data, args.model, args.judge, args.subjects, args.device)
    print(json.dumps(found, indent=1))


def _all(args: argparse.Namespace) -> None:
    from loracomp.training.glyph.pipeline import Plan, run_all

    minutes = args.vae_minutes, args.judge_minutes, args.denoiser_minutes
    where = args.data, args.work, args.tokenizer
    run_all(Plan(*where, *minutes, args.variants, args.workers, args.gpus))


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str]] = {
    "data": (_data, "fetch the artwork packages and pack the icons"),
    "examples": (_examples, "write the small committed example folders"),
    "adapters": (_adapters, "write the larger folders that adapters are trained on"),
    "manifest": (_manifest, "write the committed list of what each part trains on"),
    "render": (_render, "render every icon in several placements"),
    "vae": (_vae, "train the autoencoder"),
    "judge": (_judge, "train the judge"),
    "latents": (_latents, "encode and caption the denoiser's training set"),
    "denoiser": (_denoiser, "train denoiser and text encoder"),
    "finish": (_finish, "export, choose the defaults, measure, draw sheets"),
    "score": (_score, "print a model's figures by the judge"),
    "all": (_all, "every stage from render to finish, on one machine"),
}

if __name__ == "__main__":
    main()
