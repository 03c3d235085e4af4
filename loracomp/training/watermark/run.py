"""Marking from beginning to end: of an adapter that is there, or of one that is trained first."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loracomp import formats
from loracomp.adapter import Adapter
from loracomp.errors import TrainingError, UsageError
from loracomp.loading import defaults, open_base
from loracomp.training import checkpoint
from loracomp.training.config import TrainConfig, load_dump, make_config
from loracomp.training.dataset import read_dataset
from loracomp.training.loop import Report
from loracomp.training.progress import silent
from loracomp.training.result import Origin, Trained
from loracomp.training.run import Stop, half_precision, never, train
from loracomp.training.run import resume as resume_plain
from loracomp.training.watermark.drawn import draw_into
from loracomp.training.watermark.prompts import base_prompts, prompts_for, without_trigger
from loracomp.training.watermark.session import Marking, MarkSession
from loracomp.training.watermark.settings import MarkSettings
from loracomp.training.wiring import row_of
from loracomp.watermark.codec import Codec
from loracomp.watermark.keys import Key

STATE = "loracomp-marking/1"


def embed(
    twin: Adapter,
    out: Path,
    key: Key,
    codec: Codec,
    settings: MarkSettings,
    *,
    pipe: Any = None,
    base: str = "",
    data: Path | None = None,
    shadows: Sequence[Adapter] = (),
    device: str = "auto",
    seed: int = 0,
    config: TrainConfig | None = None,
    report: Report = silent,
    stop: Stop = never,
) -> Trained:
    """Puts a key's mark into an adapter; goes on where an earlier run was interrupted.

    Args:
        twin: The adapter; it stays as it is.
        out: File to write.
        key: The key.
        codec: Of the same base.
        settings: How; ``authenlora`` learns a style itself and cannot mark what is there.
        pipe: The base if it is open already.
        base: Where the base lies, if it is none of the known ones.
        data: Pictures to learn from; drawn with the adapter where None.
        shadows: Other adapters that the mark has to stand.
        device: Where; unused with ``pipe``.
        seed: Decides what is drawn and the order.
        config: Of the twin's own run, if there was one.
        report: Told of what happens.
        stop: Asked after every step.

    Raises:
        UsageError: The codec and the method, or the codec and the key, do not go together.
        TrainingError: The data cannot be used, or nothing was learned.
        InterruptedRunError: ``stop`` said so; calling it again goes on.
    """
    if settings.method == "authenlora":
        raise UsageError("authenlora marks while a style is learned; use `train run --watermark`, or keyed")
    check_codec(codec, key, settings)
    if pipe is None:
        half = config is not None and half_precision(config, device)
        pipe = open_base(base or twin.base, dtype="bf16" if half else "fp32", device=device)
    chosen = _config(twin, settings, codec, base or twin.base, seed, config)
    folder = data
    if folder is None:
        folder = out.with_name(f"{out.name}.pictures")
        adapters = [twin] if settings.method == "keyed" else []
        texts = (prompts_for if adapters else _plain)(twin, settings.pictures, seed)
        _draw(folder, pipe, adapters, texts, chosen, seed, report, stop)
    marking = Marking(key, codec, settings, twin, tuple(shadows))
    return _run(marking, chosen, folder, out, pipe, report, stop)


def train_marked(
    config: TrainConfig,
    data: Path,
    out: Path,
    key: Key,
    codec: Codec,
    settings: MarkSettings,
    *,
    pipe: Any = None,
    shadows: Sequence[Adapter] = (),
    device: str = "auto",
    report: Report = silent,
    stop: Stop = never,
) -> Trained:
    """Trains an adapter whose pictures carry a key's mark; its unmarked twin stays beside it.

    The twin (``NAME.twin.safetensors``) is bit for bit what the same config trains without a mark.

    Args:
        config: Of the twin.
        data: The folder.
        out: File to write.
        key: The key.
        codec: Of the same base.
        settings: How.
        pipe: The base if it is open already.
        shadows: Other adapters that the mark has to stand.
        device: Where; unused with ``pipe``.
        report: Told of what happens.
        stop: Asked after every step.

    Raises:
        TrainingError: See :func:`loracomp.training.run.train`.
        InterruptedRunError: ``stop`` said so; calling it again goes on.
    """
    if config.objective != "diffusion" or config.train_text_encoder:
        raise UsageError("--watermark marks what a denoiser draws: no accelerators, no train_text_encoder")
    check_codec(codec, key, settings)
    if pipe is None:
        half = half_precision(config, device)
        pipe = open_base(config.base, dtype="bf16" if half else "fp32", device=device)
    twin = _twin(config, data, twin_path(out), pipe, report, stop)
    if settings.method != "authenlora":
        return embed(
            twin, out, key, codec, settings, pipe=pipe, base=config.base, data=data, shadows=shadows,
            seed=config.seed, config=config, report=report, stop=stop,
        )  # fmt: skip
    folder, priors = _with_prior(config, data, out, pipe, settings, report, stop)
    marking = Marking(key, codec, settings, None, (), priors)
    changes = {"rank": settings.rank + config.rank, "alpha": None, "steps": settings.steps, "lr": settings.lr}
    return _run(marking, config.model_copy(update=changes), folder, out, pipe, report, stop)


def twin_path(out: Path) -> Path:
    """Where the unmarked twin lies."""
    return out.with_suffix(".twin.safetensors")


def check_codec(codec: Codec, key: Key, settings: MarkSettings) -> None:
    """Raises :class:`UsageError` unless codec, key and method go together."""
    wanted = {"keyed": "keyed", "authenlora": "zero", "aqualora": "fixed"}[settings.method]
    if codec.shape.carriers != wanted:
        raise UsageError(
            f"{settings.method} needs a codec with {wanted} carriers, and this one has {codec.shape.carriers}"
        )
    if not codec.keyed and codec.shape.bits != key.bits:
        raise UsageError(f"a key of {key.bits} bits, a codec of {codec.shape.bits}; issue a key with --bits")


def _twin(config: TrainConfig, data: Path, path: Path, pipe: Any, report: Report, stop: Stop) -> Adapter:
    """The unmarked twin: as it is, finished, or trained."""
    origin = Origin.of(pipe, row_of(pipe))
    table = None if origin.name == origin.row.name else origin.shapes
    if checkpoint.state_path(path).exists():
        return resume_plain(path, data=data, pipe=pipe, report=report, stop=stop).adapter
    if path.exists():
        return formats.load(path, modules=table)
    return train(config, data, path, pipe=pipe, report=report, stop=stop).adapter


def _config(
    twin: Adapter, settings: MarkSettings, codec: Codec, base: str, seed: int, config: TrainConfig | None
) -> TrainConfig:
    """The marking run's config: the twin's own, with the mark's rank, steps and rate, at the codec's size."""
    rank = settings.rank + (max(twin.ranks, default=0) if settings.method == "keyed" else 0)
    changes: dict[str, Any] = {
        "rank": rank, "alpha": None, "steps": settings.steps, "lr": settings.lr, "batch": settings.batch,
        "caption_dropout": 0.1, "terminal_share": 0.0, "train_text_encoder": False,
        "resolution": codec.shape.pixels,
    }  # fmt: skip
    if config is not None:
        return config.model_copy(update=changes)
    tags = twin.metadata.get("modelspec.tags", "style")
    named = {
        "name": Path(twin.name).stem or "marked",
        "kind": tags if tags in ("style", "subject") else "style",
    }
    return make_config({**named, "base": base, "trigger": list(twin.trigger_words), "seed": seed, **changes})


def _plain(twin: Adapter, count: int, seed: int) -> list[str]:
    return base_prompts(twin.base, count, seed)


def _draw(
    folder: Path, pipe: Any, adapters: Sequence[Adapter], prompts: Sequence[str], config: TrainConfig,
    seed: int, report: Report, stop: Stop, prefix: str = "drawn",
) -> list[str]:  # fmt: skip
    row = row_of(pipe)
    own = defaults(config.base, row)
    side = config.resolution or row.resolution
    settings: dict[str, Any] = {
        "num_inference_steps": config.sample_steps or own["steps"],
        "guidance_scale": own["guidance"],
        "height": side,
        "width": side,
    }
    report({"event": "note", "text": f"drawing {len(prompts)} pictures to learn from"})
    names = draw_into(folder, pipe, adapters, prompts, settings, seed=seed, prefix=prefix, stop=stop)
    if len(names) < len(prompts):
        from loracomp.training.interrupt import InterruptedRunError

        raise InterruptedRunError(0, config.steps, folder)
    return names


def _with_prior(
    config: TrainConfig, data: Path, out: Path, pipe: Any, settings: MarkSettings, report: Report, stop: Stop
) -> tuple[Path, frozenset[str]]:
    """A folder of the style's pictures and of the base's own for the same captions without the trigger."""
    import shutil

    folder = out.with_name(f"{out.name}.pictures")
    folder.mkdir(parents=True, exist_ok=True)
    dataset = read_dataset(data)
    for picture, caption in zip(dataset.pictures, dataset.captions(config.trigger, config.name), strict=True):
        target = folder / f"style-{picture.path.stem}{picture.path.suffix}"
        if not target.exists():
            shutil.copyfile(picture.path, target)
        target.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    share = settings.prior_share
    count = max(1, round(len(dataset.pictures) * share / max(1e-6, 1 - share)))
    texts = without_trigger(dataset.captions(config.trigger, config.name), config.trigger)
    texts = [texts[i % len(texts)] for i in range(min(count, settings.pictures))]
    names = _draw(folder, pipe, [], texts, config, config.seed, report, stop, prefix="prior")
    return folder, frozenset(names)


def _run(
    marking: Marking, config: TrainConfig, folder: Path, out: Path, pipe: Any, report: Report, stop: Stop
) -> Trained:
    """A new run, or the rest of one that was interrupted."""
    dataset = read_dataset(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = out.with_name(f"{out.name}.ckpt") / "mark.json"
    said = {
        "format": STATE, "commitment": marking.key.commitment, "codec": marking.codec.digest,
        "settings": marking.settings.dump(), "data": dataset.fingerprint,
    }  # fmt: skip
    begun = checkpoint.Progress(
        step=0, config=config.dump(), data=str(folder.resolve()), fingerprint=dataset.fingerprint, base="",
        started=time.time(), seconds=0.0, losses=(),
    )  # fmt: skip
    if checkpoint.state_path(out).exists():
        if not about.exists() or json.loads(about.read_text()) != said:
            raise TrainingError(
                f"{about.parent}: an interrupted run with other settings; repeat them, or remove it"
            )
        begun = checkpoint.read_progress(out)
        config = load_dump(begun.config)
    about.parent.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(said, sort_keys=True) + "\n", encoding="utf-8")
    half = half_precision(config, str(pipe.device))
    session = MarkSession(
        pipe, row_of(pipe), config, dataset, out, replace(begun), report, half, marking=marking
    )
    trained = session.run(stop)
    about.unlink(missing_ok=True)
    checkpoint.discard(out)
    return trained
