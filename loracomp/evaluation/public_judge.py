"""Public open_clip weights as a judge, for pictures of the large bases."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.errors import ResourceError, UsageError
from loracomp.evaluation.clip_judge import ClipJudge
from loracomp.evaluation.judge import JUDGES, Judge, Vocabulary

NAME = "openclip"
DEFAULT = "ViT-B-32/laion2b_s34b_b79k"


@JUDGES.register(NAME, summary="public open_clip weights, openclip:MODEL/WEIGHTS", paper="2212.07143")
def load_public(detail: str, vocabulary: Vocabulary | None, device: str) -> Judge:
    """The judge behind ``MODEL/WEIGHTS``, as open_clip calls them.

    Args:
        detail: For example ``ViT-L-14/datacomp_xl_s13b_b90k``; ViT-B-32 on LAION-2B if empty.
        vocabulary: What it shall name.
        device: Where it runs.

    Raises:
        UsageError: No vocabulary, or ``detail`` is not of this form.
        ResourceError: open_clip is missing, or the weights are neither cached nor to be fetched.
    """
    if vocabulary is None:
        raise UsageError(f"judge {NAME}: needs a vocabulary, since public weights bring no names")
    model, _, weights = (detail or DEFAULT).rpartition("/")
    if not model or not weights:
        raise UsageError(f"judge {NAME}:{detail}: write {NAME}:MODEL/WEIGHTS, for example {NAME}:{DEFAULT}")
    clip, tokenizer = _opened(model, weights)
    clip = clip.to(device).eval()
    scale = float(clip.logit_scale.detach().exp())

    def images(pictures: Tensor) -> Tensor:
        return clip.encode_image(_normalized(clip.visual, pictures.to(device, torch.float32)))

    def texts(lines: list[str]) -> Tensor:
        return clip.encode_text(tokenizer(lines).to(device))

    temperatures = dict.fromkeys(("subject", "style", "colour"), scale)
    return ClipJudge(f"{NAME}:{model}/{weights}", images, texts, vocabulary, temperatures)


def _opened(model: str, weights: str) -> tuple[Any, Any]:
    try:
        import open_clip
    except ImportError as error:
        raise ResourceError(
            f"judge {NAME}: open_clip is missing ({error}); pip install 'loracomp[judge]'"
        ) from error
    try:
        with _quiet():
            clip = open_clip.create_model(model, pretrained=weights)
            return clip, open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0].split(". ")[0]
        raise ResourceError(
            f"judge {NAME}:{model}/{weights}: neither in the local cache nor to be fetched ({line}); "
            "fetch it once where there is a network, or use --judge glyph"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warnings and log lines: what goes wrong comes as its exception."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _normalized(visual: Any, pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] at the model's size, with its mean taken off and over its deviation."""
    size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
    if pictures.shape[-2:] != size:
        pictures = F.interpolate(pictures, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (
        pictures.new_tensor(value)[None, :, None, None] for value in (visual.image_mean, visual.image_std)
    )
    return (pictures - mean) / deviation
