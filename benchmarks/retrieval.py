"""How fast adapters are encoded, and, with a corpus, how well they are found.

    python -m benchmarks.retrieval speed [--folder DIR]
    python -m benchmarks.retrieval quality CORPUS --index DIR --out FOLDER_OF_THE_ENCODER

Speed: a synthetic SDXL LoRA of 722 layers, rank 32, float16 (170 MB) in memory, one thread; processor time,
so that other processes count less. Files: a folder of glyph adapters (made here if none is named), whole,
with header, hash and features, on one process and on all cores. Targets: 380 MB/s spectra alone, 270 MB/s
with sketches, 200 files/s on two cores, text probes of 50 adapters/s.

Quality: every measurement of ``loracomp.training.encoder``, encoder and baselines side by side, in one file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.doctor import sdxl
from loracomp.adapter import Adapter
from loracomp.bases import UNET_TARGETS, modules
from loracomp.formats import load, save, shipped_folder
from loracomp.lowrank import LowRank
from loracomp.retrieval.bank import ProbeBank, load_bank, make_bank
from loracomp.retrieval.features import features
from loracomp.retrieval.reduction import merged, reduce_layers
from loracomp.retrieval.sites import site_table
from loracomp.retrieval.spectra import spectrum_features, squared_singular_values
from loracomp.retrieval.textprobes import text_block
from loracomp.retrieval.workers import TASK, Job, cores, encode_all

RESULT = Path(__file__).parent / "results" / "retrieval.json"
ENDS = (*UNET_TARGETS, "conv1", "conv2")


def placed(adapter: Adapter) -> dict[int, LowRank]:
    """Layers by position in the site table."""
    table = site_table(adapter.base)
    return {table.index[path]: layer for path, layer in adapter.layers.items()}


def glyph(seed: int, rank: int = 4) -> Adapter:
    """A random glyph adapter on its default targets, 106 layers."""
    source = torch.Generator().manual_seed(seed)
    layers = {}
    for path, shape in modules("glyph").items():
        if path.startswith("unet.") and path.endswith(ENDS):
            tail = (1,) * (len(shape) - 2)
            down = torch.randn((rank, *shape[1:]), generator=source) * 0.05
            layers[path] = LowRank(down.half(), torch.randn((shape[0], rank, *tail), generator=source).half())
    return Adapter(layers, "glyph", f"random{seed}")


def spectra(layers: dict[int, LowRank]) -> None:
    """Spectra alone."""
    for reduced in merged(reduce_layers(layers.items(), sketches=False)):
        squares = squared_singular_values(reduced.up, reduced.down, reduced.scale)
        spectrum_features(squares, torch.ones(len(reduced.places)))


def median_cpu(work: Callable[[], object], turns: int) -> float:
    """Median processor time of some work, in seconds, after one turn that does not count."""
    work()
    times = []
    for _ in range(turns):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def in_memory(rank: int, turns: int) -> dict[str, Any]:
    """MB/s of spectra, and of spectra with sketches, on one thread."""
    adapter = sdxl(rank)
    layers, table = placed(adapter), site_table("sdxl")
    size = sum(2 * (layer.up.numel() + layer.down.numel()) for layer in layers.values()) / 1e6
    alone = median_cpu(lambda: spectra(layers), turns)
    both = median_cpu(lambda: features(layers, table), turns)
    return {
        "megabytes": size,
        "layers": len(layers),
        "spectra_mb_per_s": size / alone,
        "spectra_and_sketches_mb_per_s": size / both,
        "targets_mb_per_s": [380, 270],
    }


def probing(adapters: list[Adapter], bank: ProbeBank, device: str) -> dict[str, Any]:
    """Text probes in adapters a second, by the wall clock."""
    there = bank.to(device)
    held = [{p: v.to(device) for p, v in placed(adapter).items()} for adapter in adapters]
    block = text_block(held[0], there)
    start = time.perf_counter()
    for layers in held:
        block = text_block(layers, there)
    if block is None or not bool(block.energy.isfinite().all()):
        raise SystemExit("text probes without an answer")
    return {"device": device, "adapters_per_s": len(held) / (time.perf_counter() - start), "target": 50}


def from_files(folder: Path, bank: Path) -> dict[str, Any]:
    """Whole files a second, with and without text probes, on one process and on all cores."""
    files = sorted(map(str, folder.rglob("*.safetensors")))
    out: dict[str, Any] = {"files": len(files), "target_files_per_s": 200}
    for name, job in (("features", Job()), ("features and text probes", Job((("glyph", bank),)))):
        for jobs in sorted({1, cores()}):
            out[f"{name}, {jobs} processes"] = statistics.median(rate(files, job, jobs) for _ in range(3))
    return out


def rate(files: list[str], job: Job, jobs: int) -> float:
    """Files encoded a second, once the processes are up and have each done their first task."""
    results = encode_all(files, job, jobs)
    for _ in range(jobs * TASK):
        next(results)
    start = time.perf_counter()
    count = sum(not isinstance(found, str) for _, found in results)
    return count / (time.perf_counter() - start)


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure of speed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder, bank = options.folder, Path(place) / "bank.safetensors"
        if folder is None:
            folder = Path(place) / "loras"
            folder.mkdir()
            for seed in range(options.files):
                save(glyph(seed), folder / f"random{seed}.safetensors")
        source = shipped_folder("glyph")
        if source is None:
            raise SystemExit("glyph does not ship with this installation")
        make_bank("glyph", source).save(bank)
        some = [load(file) for file in sorted(folder.rglob("*.safetensors"))[:64]]
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        return {
            "memory": in_memory(options.rank, options.turns),
            "text_probes": [probing(some, load_bank(bank), device) for device in devices],
            "folder": from_files(folder, bank),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        }


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Measurements of the encoder and of the baselines, made and read from where they were written."""
    from loracomp.training.encoder.__main__ import main as measure

    common = [str(options.corpus), "--index", str(options.index), "--out", str(options.out)]
    for command in ("evaluate", "baselines"):
        measure([command, *common, "--split", options.split])
    return {
        "encoder": json.loads((options.out / f"{options.split}.json").read_text()),
        "baselines": json.loads((options.out / f"baselines-{options.split}.json").read_text()),
    }


def main() -> None:
    """Measures, prints and writes the result beside what is there."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("speed")
    first.add_argument("--folder", type=Path, help="glyph adapters; random ones if left out")
    first.add_argument("--files", type=int, default=400)
    first.add_argument("--rank", type=int, default=32)
    first.add_argument("--turns", type=int, default=9)
    first.set_defaults(run=speed)
    second = commands.add_parser("quality")
    second.add_argument("corpus", type=Path)
    second.add_argument("--index", type=Path, required=True)
    second.add_argument("--out", type=Path, required=True, help="folder of the trained encoder")
    second.add_argument("--split", default="test")
    second.set_defaults(run=quality)
    options = parser.parse_args()
    found = options.run(options)
    print(json.dumps(found, indent=1, ensure_ascii=False))
    RESULT.parent.mkdir(exist_ok=True)
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps({**before, options.command: found}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
