"""Pictures of an image while it is being drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SHOWN = 4
_LATENT = 32
_QUALITY = 80


@contextmanager
def watching(pipe: Any, path: Path, seconds: float = 1.0) -> Iterator[None]:
    """Writes what is being drawn to ``path``, ``seconds`` apart, and changes nothing in what is drawn.

    Shown is the clean image that the scheduler predicts, where it tells; else the latents as they are.
    Latents above 32 pixels are made smaller before they are decoded.

    Args:
        pipe: The pipeline; its scheduler is watched meanwhile.
        path: WebP file, replaced in one step.
        seconds: Least time between two pictures.
    """
    scheduler, last = pipe.scheduler, time.monotonic()
    inner: Callable[..., Any] = scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal last
        result = inner(*args, **kwargs)
        if time.monotonic() - last >= seconds:
            _write(pipe, _clean(result), path)
            last = time.monotonic()
        return result

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step
        path.unlink(missing_ok=True)


def _clean(result: Any) -> Any:
    """The predicted clean latents in what a scheduler's step returned, or the noisy ones."""
    if isinstance(result, tuple):
        return result[1] if len(result) > 1 else result[0]
    clean = getattr(result, "pred_original_sample", None)
    return result.prev_sample if clean is None else clean


def _write(pipe: Any, latents: Any, path: Path) -> None:
    import torch
    from PIL import Image

    if latents.ndim != 4:
        return  # rows of patches: the next picture is the finished one
    shown = latents[:_SHOWN]
    if max(shown.shape[2:]) > _LATENT:
        share = _LATENT / max(shown.shape[2:])
        shown = torch.nn.functional.interpolate(shown.float(), scale_factor=share, mode="area").to(
            latents.dtype
        )
    config = pipe.vae.config
    with torch.inference_mode():
        shown = shown / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        decoded = pipe.vae.decode(shown, return_dict=False)[0]
        rows = pipe.image_processor.postprocess(decoded, output_type="pil")
    width, height = rows[0].size
    sheet = Image.new("RGB", (width * len(rows), height))
    for index, image in enumerate(rows):
        sheet.paste(image, (index * width, 0))
    part = path.with_suffix(".part")
    sheet.save(part, format="WEBP", quality=_QUALITY)
    part.replace(path)
