"""The recipe of a codec: ``python -m loracomp.training.watermark COMMAND --help``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from loracomp.errors import LoracompError, UsageError

DATA = Path(".data")


def main(arguments: list[str] | None = None) -> None:
    """Parses one command and runs it."""
    parser = argparse.ArgumentParser(prog="python -m loracomp.training.watermark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    codec = commands.add_parser("codec", help="train the codec of a base; goes on where it was stopped")
    codec.add_argument("--base", default="glyph", help="known name, diffusers folder or hub id")
    codec.add_argument("--pictures", type=Path, help="folder of pictures; left out, glyph's icons")
    codec.add_argument("--data", type=Path, default=DATA, help="folder of icons.json.xz")
    codec.add_argument("--work", type=Path, default=DATA / "watermark", help="checkpoint and log")
    codec.add_argument("--out", type=Path, help="file to write; the package's own for glyph's keyed codec")
    codec.add_argument("--carriers", choices=("keyed", "fixed", "zero", "pooled"), default="keyed")
    codec.add_argument("--minutes", type=float, default=15.0)
    codec.add_argument("--steps", type=int, help="optimizer steps at most")
    codec.add_argument("--batch", type=int, default=64)
    codec.add_argument("--bits", type=int, default=32)
    codec.add_argument("--psnr", type=float, default=35.0, help="dB that the mark ends with")
    codec.add_argument("--workers", type=int, default=2, help="processes that render icons")
    codec.add_argument("--device", default="auto")
    codec.set_defaults(run=_codec)
    thin = commands.add_parser("thin", help="a calibration with fewer images, small enough to ship")
    thin.add_argument("file", type=Path, help="from loracomp watermark calibrate, or a benchmark")
    thin.add_argument("--images", type=int, default=300, help="of each population")
    thin.add_argument("--out", type=Path, required=True)
    thin.set_defaults(run=_thin)
    args = parser.parse_args(arguments)
    try:
        print(args.run(args))
    except LoracompError as error:
        print(f"watermark: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _codec(args: argparse.Namespace) -> Path:
    """Trains and writes; the file."""
    from loracomp.loading import open_base
    from loracomp.training.watermark.codec_train import train_codec
    from loracomp.watermark.codec import LARGEST, SHIPPED

    pipe = open_base(args.base, dtype="fp32", device=args.device)
    run = recipe(pipe, args)
    own = args.pictures is None
    if own and args.base != "glyph":
        raise UsageError("--pictures: a folder of pictures is needed for any base but glyph")
    codec = train_codec(run, pipe.vae, lambda: _material(args, run.shape.pixels), args.work, str(pipe.device))
    names = {"keyed": "glyph.safetensors", "pooled": "glyph.pooled.safetensors"}
    shipped = own and args.carriers in names and args.out is None
    path = args.out or (SHIPPED / names[args.carriers] if shipped else _own(args))
    codec.save(path)
    if shipped:
        from loracomp.training.glyph.store import load
        from loracomp.training.watermark.material import write_manifest

        write_manifest(load(args.data).icons, SHIPPED / "manifest.json")
        if (size := path.stat().st_size) > LARGEST:
            raise UsageError(f"{path}: {size} bytes, more than {LARGEST} that ship")
    return path


def _thin(args: argparse.Namespace) -> Path:
    from loracomp.watermark.calibration import load_calibration

    return load_calibration(args.file).thinned(args.images).save(args.out)


def _own(args: argparse.Namespace) -> Path:
    """Where a codec goes that does not ship."""
    return Path(args.work) / f"{args.base.replace('/', '-')}.{args.carriers}.safetensors"


def recipe(pipe: Any, args: argparse.Namespace) -> Any:
    """The run for a base: sizes from its autoencoder; as many bands as a third of its places."""
    from loracomp.training.watermark.codec_train import CodecRun
    from loracomp.training.wiring import row_of
    from loracomp.watermark.networks import Shape

    row, vae = row_of(pipe), pipe.vae
    stride = 2 ** (len(vae.config.block_out_channels) - 1)
    pixels = min(row.resolution, 256)
    side = pixels // stride
    channels = int(vae.config.latent_channels)
    bands = max(1, min(side * side * 5 // 16, side * side - 1, 4096 // channels))
    shape = Shape(channels, side, pixels, bands, bits=args.bits, carriers=args.carriers)
    half = pipe.device.type == "cuda"
    run = CodecRun(shape, row.name, args.minutes, args.batch, psnr=args.psnr, half=half, steps=args.steps)
    return run if half else replace(run, batch=min(run.batch, 16))


def _material(args: argparse.Namespace, side: int) -> Any:
    from loracomp.training.watermark.material import Folder, Icons

    device = args.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.pictures is not None:
        return Folder.read(args.pictures, side, device)
    from loracomp.training.glyph.pictures import load_pictures, render_store

    rendered = args.data / "watermark"
    render_store(args.data, rendered, variants=2, workers=args.workers)
    return Icons(load_pictures(args.data, rendered, device))


if __name__ == "__main__":
    main()
