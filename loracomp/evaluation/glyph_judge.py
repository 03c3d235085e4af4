"""glyph's judge: a small open_clip model trained on icons, with its names, read from one folder.

The folder holds ``config.json`` (:class:`JudgeConfig`), ``tokenizer.json`` and ``model.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.errors import FormatError, ResourceError
from loracomp.evaluation.clip_judge import ClipJudge
from loracomp.evaluation.judge import JUDGES, Judge, Vocabulary

NAME = "glyph"
SHIPPED = Path(__file__).parents[1] / "assets" / "judge"
SIDE = 128
TEXT_LENGTH = 24
VISIONS: dict[str, dict[str, Any]] = {
    "mobilevit": {"timm_model_name": "mobilevitv2_050", "timm_drop": 0.1},
    "resnet": {"layers": [2, 2, 2, 2], "width": 16, "head_width": 64},
    "tiny": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
}
DEFAULT_TEMPERATURE = 20.0


@dataclass(frozen=True)
class JudgeConfig:
    """The open_clip model's shape, and everything that the judge names.

    Attributes:
        vision: A key of :data:`VISIONS`.
        width: Width of the shared embedding.
        text_width: Width of the text tower.
        text_layers: Its depth.
        vocabulary: Number of tokens.
        subjects: Slugs.
        subject_names: Their names in words.
        styles: Names of styles and filters.
        style_phrases: The words that prompts use for them.
        colors: Names of backgrounds.
        groups: Look-alike subjects.
        temperatures: Calibrated factors for ``subject``, ``style`` and ``color``.
    """

    vision: str = "resnet"
    width: int = 192
    text_width: int = 80
    text_layers: int = 2
    vocabulary: int = 4096
    subjects: tuple[str, ...] = ()
    subject_names: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    style_phrases: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    temperatures: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``config.json``."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> JudgeConfig:
        """What :meth:`to_json` wrote; raises ValueError, KeyError or TypeError for anything else."""
        rows = json.loads(text)
        rows["groups"] = tuple(tuple(group) for group in rows["groups"])
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in rows.items()}
        return cls(**values)

    def named(self) -> Vocabulary:
        """What the judge can name, in the words that it was trained with."""
        names = dict(zip(self.subjects, self.subject_names, strict=True))
        return Vocabulary(
            {slug: f"a {name} emoji" for slug, name in names.items()},
            dict(zip(self.styles, self.style_phrases, strict=True)),
            {color: f"{color} background" for color in self.colors},
            self.groups,
        )


def build_clip(config: JudgeConfig) -> nn.Module:
    """The untrained open_clip model; raises :class:`ResourceError` where open_clip is missing."""
    try:
        from open_clip.model import CLIP
    except ImportError as error:
        raise ResourceError(f"the judge needs open_clip ({error}); pip install 'loracomp[judge]'") from error

    vision = {"image_size": SIDE} | VISIONS[config.vision]
    text = {
        "context_length": TEXT_LENGTH,
        "vocab_size": config.vocabulary,
        "width": config.text_width,
        "heads": 4,
        "layers": config.text_layers,
        "pool_type": "eos",
        "eos_id": 1,
        "pad_id": 1,
    }
    model: nn.Module = CLIP(config.width, vision, text, output_dict=False)
    return model.eval()


def normalized(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1], of any size, as the vision tower wants them."""
    if pictures.shape[-2:] != (SIDE, SIDE):
        pictures = F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return (pictures - 0.5) * 4


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids (texts, 24): start, words, end, then end tokens as padding."""
    rows = torch.ones(len(texts), TEXT_LENGTH, dtype=torch.long)
    for row, found in zip(rows, tokenizer.encode_batch(list(texts)), strict=True):
        ids = found.ids[: TEXT_LENGTH - 1]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def judge_of(name: str, clip: nn.Module, config: JudgeConfig, tokenizer: Any) -> ClipJudge:
    """A judge from its three parts; it runs where the model lies."""
    device = next(clip.parameters()).device

    def images(pictures: Tensor) -> Tensor:
        return clip.encode_image(normalized(pictures.to(device, torch.float32)))  # type: ignore[operator]

    def texts(lines: list[str]) -> Tensor:
        return clip.encode_text(tokenize(tokenizer, lines).to(device))  # type: ignore[operator]

    found = config.temperatures
    keys = {"subject": "subject", "style": "style", "colour": "color"}
    temperatures = {kind: found.get(key, DEFAULT_TEMPERATURE) for kind, key in keys.items()}
    return ClipJudge(name, images, texts, config.named(), temperatures)


@JUDGES.register(NAME, summary="the judge of the embedded base, 5 MB")
def load_judge(detail: str = "", vocabulary: Vocabulary | None = None, device: str = "cpu") -> Judge:
    """The judge in a folder; the shipped one by default.

    Args:
        detail: Folder; empty for the shipped judge.
        vocabulary: Left out: the folder says what the judge can name.
        device: Where it runs.

    Raises:
        ResourceError: A file of it, or open_clip, is missing.
        FormatError: The files are not a judge's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = Path(detail) if detail else SHIPPED
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise ResourceError(f"{folder / file}: missing, so there is no judge; reinstall loracomp")
    try:
        config = JudgeConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
        clip = build_clip(config)
        state = load_file(folder / "model.safetensors")
        clip.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise FormatError(f"{folder}: not a judge's folder ({error})") from error
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return judge_of(f"{NAME}:{detail}" if detail else NAME, clip.to(device), config, tokenizer)
