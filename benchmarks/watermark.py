"""The targets of marked LoRAs on glyph: ``python -m benchmarks.watermark --data .data --minutes 25``.

Stages write ``WORK/NAME.json`` and are skipped where that is there, so a run that was stopped goes on; no
stage begins once the minutes are over. ``--small`` runs all of it with toy numbers, to see that it runs. The
table and the curves go to ``benchmarks/results/``, the residual to ``docs/images/``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.watermark_figures import figures, report
from benchmarks.watermark_sizes import SMALL, Size
from loracomp import formats
from loracomp.adapter import Adapter
from loracomp.loading import open_base
from loracomp.training.config import make_config
from loracomp.training.glyph.packages import ART_SETS
from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.watermark.__main__ import main as recipe
from loracomp.training.watermark.prompts import known_subjects
from loracomp.training.watermark.run import embed, train_marked, twin_path
from loracomp.training.watermark.settings import MarkSettings, Method
from loracomp.training.watermark.studio import Studio
from loracomp.training.watermark.trials import attack, calibrate, null_report
from loracomp.watermark import evidence
from loracomp.watermark.attribution import attribute
from loracomp.watermark.calibration import Calibration, load_calibration
from loracomp.watermark.codec import Codec, load_codec
from loracomp.watermark.keys import Key, OwnerKey

ROOT = Path(__file__).parents[1]
OWNER = OwnerKey(b"loracomp benchmark, not a secret")
CARRIERS: dict[Method, str] = {"keyed": "keyed", "authenlora": "zero", "aqualora": "fixed"}
STYLES = ("mono", "fluent", "blobs")
OTHERS = ("pixel", "watercolor", "halftone", "neon", "pencil")
SHADOWS = ("blueprint", "watermelon", "bicycle", "violin")
ATTACKS = ("none", "jpeg", "strength", "rank", "quantize", "crowd", "merge", "live", "prune", "noise", "drop")
CODEC_MINUTES = {"keyed": 14.0, "zero": 6.0, "fixed": 6.0, "pooled": 6.0}


class Bench:
    """The stages, on one open base."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, Path(args.work)
        self.size = SMALL if args.small else Size()
        self.until = time.monotonic() + 60 * args.minutes
        self.work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def pipe(self) -> Any:
        """glyph."""
        return open_base("glyph", dtype="fp32", device=self.args.device)

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """What a stage found, now or in an earlier run; None where there is no time for it."""
        path = self.work / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        if time.monotonic() > self.until:
            return None
        print(f"[{name}]", flush=True)
        began = time.monotonic()
        found = make()
        found = {**found, "stage_seconds": round(time.monotonic() - began, 1)}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.replace(path)
        return found

    def codec(self, carriers: str) -> Codec:
        """Trained here, or in an earlier run."""
        path = self.work / f"{carriers}.safetensors"
        if not path.exists():
            minutes = CODEC_MINUTES[carriers] * self.size.codec
            words = ["codec", "--data", self.args.data, "--work", self.work / carriers, "--out", path]
            words += ["--carriers", carriers, "--minutes", minutes or 5, "--device", self.pipe.device]
            words += ["--steps", 2, "--batch", 4] if self.args.small else []
            recipe([str(word) for word in words])
        return load_codec(path).to(self.pipe.device)

    def adapter(self, name: str) -> Adapter:
        """An adapter that is there: shipped, or made by ``loracomp.training.shipped --bench``."""
        from loracomp.library import open_adapter

        made = Path(self.args.data) / "made3" / f"{name}.safetensors"
        return open_adapter(str(made) if made.exists() else name)

    def key(self, style: str, seed: int, bits: int = 32) -> Key:
        """One per LoRA and seed; screened where calibration is there."""
        return OWNER.issue(f"{style}-{seed}", bits=bits)

    def prompts(self, style: str, count: int, seed: int = 0) -> list[str]:
        """Known subjects in a style, half on white."""
        source = torch.Generator().manual_seed(100 + seed)
        names = known_subjects()
        phrase = {art.style: art.phrase for art in ART_SETS}.get(style, f"{style} style")
        chosen = torch.randperm(len(names), generator=source)[:count].tolist()
        out = []
        for number, index in enumerate(chosen):
            color = COLOR_NAMES[1 + number // 2 % (len(COLOR_NAMES) - 1)]
            text = f"a {names[index]} emoji, {phrase}"
            out.append(text if number % 2 == 0 else f"{text}, {color} background")
        return out

    def studio(self, style: str, seed: int = 0) -> Studio:
        """Draws the measured pictures."""
        batch = 32 if self.pipe.device.type == "cuda" else 4
        texts = self.prompts(style, self.size.images, seed)
        return Studio(self.pipe, texts, 9000 + 1000 * seed, self.size.steps, batch=batch)

    def marked(self, style: str, method: Method, seed: int, bits: int = 32) -> tuple[Adapter, Adapter]:
        """A marked adapter and its unmarked twin."""
        out = self.work / "loras" / f"{style}-{method}-{seed}-{bits}.safetensors"
        if not out.exists():
            config = make_config(
                {"name": style, "kind": "style", "base": "glyph", "trigger": f"{style} style", "seed": seed,
                 "sample_count": 0, **({"steps": 2} if self.args.small else {})}
            )  # fmt: skip
            settings = MarkSettings(method=method, steps=self.size.mark)
            shadows = [self.adapter(name) for name in SHADOWS] if method == "keyed" else []
            data, key = Path(self.args.data) / "adapters" / "styles" / style, self.key(style, seed, bits)
            codec = self.codec(CARRIERS[method])
            train_marked(config, data, out, key, codec, settings, pipe=self.pipe, shadows=shadows)
        return formats.load(out), formats.load(twin_path(out))

    def calibration(self) -> Calibration:
        """The keyed codec's, from real pictures, the base and adapters that carry no mark."""
        path = self.work / "calibration.safetensors"
        if not path.exists():
            icons = Path(self.args.data) / "adapters"
            real = sorted((icons / "accelerator").glob("*.png"))
            real += [file for style in STYLES for file in sorted((icons / "styles" / style).glob("*.png"))]
            unmarked = [self.adapter(name) for name in (*OTHERS, *SHADOWS[:1])]
            found = calibrate(
                self.codec("keyed"), self.pipe, real=real[: self.size.unmarked // 5], adapters=unmarked,
                count=self.size.unmarked // 5, steps=self.size.steps,
            )  # fmt: skip
            found.save(path)
        return load_calibration(path)

    def attacked(self, style: str, method: Method, seed: int, bits: int) -> dict[str, Any]:
        """The attack table and power curve of one marked LoRA."""
        marked, twin = self.marked(style, method, seed, bits)
        known = self.calibration() if method == "keyed" else None
        names = ("none", "jpeg") if self.args.small or bits != 32 else ATTACKS
        rows, power, gain = attack(
            marked, twin, self.key(style, seed, bits), self.codec(CARRIERS[method]), self.studio(style, seed),
            calibration=known, others=[self.adapter(name) for name in OTHERS], names=names,
            told=lambda row: print(f"  {row.attack} {row.level}: {row.accuracy:.3f}", flush=True),
        )  # fmt: skip
        return {"rows": [row.to_dict() for row in rows], "power": power, "gain": gain}

    def cost(self, style: str, method: Method, seed: int) -> dict[str, Any]:
        """What the mark costs the pictures, by the judge, on white and on colors, against the twin."""
        marked, twin = self.marked(style, method, seed)
        _, second = self.marked(style, method, seed + 1) if seed + 1 in self.size.seeds else (None, None)
        studio = self.studio(style, seed)
        drawn = {"marked": studio.alone(marked), "twin": studio.alone(twin)}
        if second is not None:
            drawn["other twin"] = studio.alone(second)
        images = self.work if self.args.small else ROOT / "docs" / "images"
        return figures(images, style, method, seed, studio.prompts, drawn, str(self.pipe.device))

    def attribution(self, seed: int) -> dict[str, Any]:
        """Three marked LoRAs in one picture, five pictures at a time."""
        keys = [self.key(style, seed) for style in STYLES]
        marked = [self.marked(style, "keyed", seed)[0] for style in STYLES]
        decoys = [OWNER.issue(f"decoy-{n}") for n in range(17)]
        codec, known = self.codec("keyed"), self.calibration()
        pictures = self.studio("mono", seed).draw(marked, "merge", [0.7] * 3)
        named: list[Tensor] = []
        false = 0
        for part in codec.read(pictures).split(5):
            found = attribute(part, [*keys, *decoys], known)
            true = {key.lora for key in keys}
            named.append(torch.tensor([any(p.named and p.lora == key.lora for p in found) for key in keys]))
            false += sum(p.named and p.lora not in true for p in found)
        return {"tpr": torch.stack(named).float().mean(0).tolist(), "sets": len(named), "false": false}

    def vae(self) -> dict[str, Any]:
        """EW-LoRA's mark on pictures that the base drew and training did not see."""
        from loracomp.training.watermark.material import Folder
        from loracomp.training.watermark.quality import psnr
        from loracomp.training.watermark.vae import VaeRun, mark_vae
        from loracomp.watermark.vaemark import marked

        codec, key, device = self.codec("pooled"), OWNER.issue("glyph vae"), str(self.pipe.device)
        drawn = Studio(self.pipe, self.prompts("noto", 24), 1, self.size.steps).draw()
        unseen = self.studio("noto")
        run = VaeRun(steps=2 if self.args.small else None)
        mark, found = mark_vae(
            run, self.pipe.vae, codec, key, Folder(drawn.to(device)), self.work / "vae", device
        )
        plain = unseen.draw()
        with marked(self.pipe.vae, mark):
            changed = unseen.draw()
        signs = 2 * key.message - 1
        right = (codec.read(changed) * signs > 0).float().mean()
        noise = float(psnr(changed, plain).mean())
        return {**found, "unseen_accuracy": float(right), "unseen_psnr": noise}

    def speed(self) -> dict[str, Any]:
        """Verification of one picture on one core, and embedding into an adapter that is there."""
        codec, picture = load_codec(self.work / "keyed.safetensors"), torch.rand(1, 3, 128, 128)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        key, known = self.key("mono", 0), self.calibration()
        times = []
        for _ in range(12):
            began = time.monotonic()
            evidence.score(codec.read(picture), key, known.scale)
            times.append(time.monotonic() - began)
        torch.set_num_threads(threads)
        began = time.monotonic()
        out = self.work / "loras" / "embedded.safetensors"
        settings = MarkSettings(steps=self.size.mark, pictures=96 if not self.args.small else 4)
        embed(self.adapter("watermelon"), out, key, self.codec("keyed"), settings, pipe=self.pipe)
        return {"verify_ms": 1000 * sorted(times)[6], "embed_seconds": time.monotonic() - began}

    def run(self) -> Iterator[tuple[str, Any]]:
        """All stages, those that others need first."""
        for name, make in self.stages():
            if any(fnmatch(name, pattern) for pattern in self.args.only):
                yield name, self.stage(name, make)

    def stages(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Names and what they run."""
        for carriers in CODEC_MINUTES:
            yield f"codec-{carriers}", partial(self.trained, carriers)
        yield "null", self._null
        styles = STYLES[:1] if self.args.small else STYLES
        methods: tuple[Method, ...] = ("keyed", "authenlora", "aqualora")
        for seed in self.size.seeds:
            for style, method in product(styles, methods):
                several = method == "keyed" and style == STYLES[0]
                for bits in self.size.bits if several else (32,):
                    name = f"attack-{style}-{method}-{seed}-{bits}"
                    yield name, partial(self.attacked, style, method, seed, bits)
                yield f"cost-{style}-{method}-{seed}", partial(self.cost, style, method, seed)
            if not self.args.small:
                yield f"attribution-{seed}", partial(self.attribution, seed)
        yield "vae", self.vae
        yield "speed", self.speed

    def trained(self, carriers: str) -> dict[str, Any]:
        """A codec's facts."""
        codec = self.codec(carriers)
        facts = {"digest": codec.digest, "amplitude": codec.amplitude, "dimensions": codec.shape.dimensions}
        log = self.work / carriers / "codec.json"
        return {**facts, "log": json.loads(log.read_text())["log"][-1] if log.exists() else None}

    def _null(self) -> dict[str, Any]:
        rows = null_report(self.calibration(), self.size.keys)
        return {"rows": [row.to_dict() for row in rows], "images": len(self.calibration().coordinates)}


def main() -> None:
    """Runs what there is time for, and writes what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--work", type=Path, default=Path(".data/watermark-bench"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "watermark.json")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="*", default=["*"], metavar="STAGE", help="patterns of stages")
    args = parser.parse_args()
    found = dict(Bench(args).run())
    missing = [name for name, value in found.items() if value is None]
    report(found, args.out)
    print(f"{args.out}: {len(found) - len(missing)} of {len(found)} stages; missing: {missing or 'none'}")


if __name__ == "__main__":
    main()
