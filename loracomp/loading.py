"""Opening a base model: by name, from a diffusers folder, a single file or a hub."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from loracomp.bases import BASES, Base
from loracomp.errors import FormatError, ResourceError, UnknownNameError, UsageError
from loracomp.registry import Registry

PACKAGE = Path(str(files("loracomp")))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OFFLOADS = ("none", "model", "sequential")
PICKLES = {".ckpt", ".pt", ".pth", ".bin"}

SCHEDULERS: Registry[tuple[str, dict[str, Any]]] = Registry("scheduler")
for _name, _kind, _options, _summary in (
    ("ddim", "DDIMScheduler", {}, "DDIM"),
    ("euler", "EulerDiscreteScheduler", {}, "Euler"),
    ("euler-a", "EulerAncestralDiscreteScheduler", {}, "Euler a"),
    ("dpm++", "DPMSolverMultistepScheduler", {}, "DPM++ 2M"),
    ("dpm++-karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "DPM++ 2M Karras"),
    ("unipc", "UniPCMultistepScheduler", {}, "UniPC"),
    ("lcm", "LCMScheduler", {}, "LCM"),
    ("flow", "FlowMatchEulerDiscreteScheduler", {}, "Euler (flow matching)"),
):
    SCHEDULERS.register(_name, summary=_summary)((_kind, _options))


def open_base(
    source: str = "glyph",
    *,
    dtype: str = "auto",
    device: str = "auto",
    offload: str = "none",
    scheduler: str | None = None,
) -> Any:
    """A text-to-image pipeline, ready to draw.

    Args:
        source: A name from :data:`BASES`, a diffusers folder, a ``.safetensors`` checkpoint, or a
            hub id.
        dtype: ``fp32``, ``bf16``, ``fp16``, or ``auto`` (bf16 on a GPU that has it, fp32 on a CPU).
        device: ``cpu``, ``cuda``, ``mps``, or ``auto``.
        offload: ``none``, ``model`` or ``sequential``: keep idle parts in main memory (GPU only).
        scheduler: A name from :data:`SCHEDULERS`; None keeps the model's own.

    Raises:
        ResourceError: Nothing there, or the hub cannot be reached.
        FormatError: There is something, but no diffusion model.
        UsageError: An unknown dtype, device, offload or scheduler.
    """
    place = _device(device)
    kind = _dtype(dtype, place)
    if offload not in OFFLOADS:
        raise UnknownNameError("offload", offload, OFFLOADS)
    if offload != "none" and place == "cpu":
        raise UsageError(f"--offload {offload} needs a GPU, and the device is cpu; leave it out")
    swap = SCHEDULERS[scheduler] if scheduler else None
    with _quiet():
        pipe = _read(source, kind)
    if swap is not None:
        import diffusers

        pipe.scheduler = getattr(diffusers, swap[0]).from_config(pipe.scheduler.config, **swap[1])
    return _settle(pipe, place, offload)


def asset_path(base: Base) -> Path | None:
    """Folder of a base that ships with the package; None for one that has to be fetched."""
    path = PACKAGE / base.source
    return path if base.source.startswith("assets/") else None


def defaults(source: str, base: Base) -> dict[str, Any]:
    """Steps, guidance scale and guidance rescale to use where the user names none.

    A model folder may carry its own, measured ones in ``loracomp_defaults.json``.
    """
    values: dict[str, Any] = {"steps": base.steps, "guidance": base.guidance, "guidance_rescale": 0.0}
    folder = asset_path(base) if source == base.name else Path(source)
    own = folder / "loracomp_defaults.json" if folder else None
    if own is not None and own.is_file():
        values |= json.loads(own.read_text())
    return values


def _read(source: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    path = Path(source).expanduser()
    if source in BASES:
        row = BASES[source]
        path = asset_path(row) or path
        if path.exists() or not asset_path(row):
            return _from_folder(DiffusionPipeline, str(asset_path(row) or row.source), dtype)
        raise ResourceError(f"{path}: the embedded base is missing; reinstall loracomp")
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise FormatError(f"{path}: no model_index.json in it; give the folder of a diffusers pipeline")
        return _from_folder(DiffusionPipeline, str(path), dtype)
    if path.is_file():
        return _from_file(path, dtype)
    if source.count("/") == 1 and not path.suffix and not source.startswith((".", "/", "~")):
        return _from_folder(DiffusionPipeline, source, dtype)
    known = ", ".join(BASES)
    raise ResourceError(f"{source}: no such base; give a name ({known}), a folder, a file or a hub id")


def _from_folder(loader: Any, source: str, dtype: torch.dtype) -> Any:
    # The safety checker is not part of a composition; pipelines that have none ignore the argument.
    index = Path(source) / "model_index.json"
    has_checker = not index.is_file() or "safety_checker" in index.read_text()
    extra = {"safety_checker": None} if has_checker and "/" in source else {}
    try:
        # Weights in pickle form would run code; without safetensors a folder is refused.
        return loader.from_pretrained(source, torch_dtype=dtype, use_safetensors=True, **extra)
    except (OSError, ValueError, KeyError) as error:
        if Path(source).is_dir():
            line = str(error).strip().splitlines()[0]
            raise FormatError(f"{source}: not a usable diffusers folder: {line}") from error
        raise ResourceError(
            f"{source}: not in the local cache, and the hub has no such model or cannot be reached; "
            "download it once, or use --base glyph"
        ) from error


def _from_file(path: Path, dtype: torch.dtype) -> Any:
    import diffusers

    if path.suffix.lower() in PICKLES:
        raise FormatError(
            f"{path}: pickle files can run code and are refused; convert the checkpoint to safetensors"
        )
    loader = getattr(diffusers, _checkpoint_base(path).pipeline)
    try:
        return loader.from_single_file(str(path), torch_dtype=dtype, safety_checker=None)
    except OSError as error:
        raise ResourceError(
            f"{path}: its configuration has to come from the hub, which cannot be reached; "
            "convert it to a diffusers folder once, and give that"
        ) from error
    except (ValueError, KeyError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise FormatError(f"{path}: not a checkpoint that diffusers understands: {line}") from error


def _checkpoint_base(path: Path) -> Base:
    """The base that a single-file checkpoint belongs to, told from its tensor names."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = {key.removeprefix("model.diffusion_model.") for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: not a safetensors checkpoint ({error})") from error
    for base in BASES.values():
        if base.checkpoint_key and base.checkpoint_key in keys:
            return base
    known = ", ".join(base.title for base in BASES.values() if base.checkpoint_key)
    raise FormatError(f"{path}: not a checkpoint of a known base ({known}); a LoRA goes after --lora")


def _settle(pipe: Any, device: str, offload: str) -> Any:
    if offload == "none":
        return pipe.to(device)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def _device(name: str) -> str:
    if name != "auto":
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device {name}: {str(error).splitlines()[0]}; try --device cpu") from error
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        return (
            torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32
        )
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, [*DTYPES, "auto"])
    return DTYPES[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading without the libraries' progress bars and notices; their errors still come through."""
    import diffusers
    import transformers

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
