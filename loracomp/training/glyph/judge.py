"""The judge: a small open_clip model that says what an icon shows, in which style, on which color.

    judge = load_judge(folder)
    judge.subject_probabilities(images)   # (B, subjects), in the order of judge.subjects
    judge.style_probabilities(images)     # (B, styles), in the order of judge.styles
    judge.color_probabilities(images)     # (B, colors), in the order of judge.colors
    judge.score(images, texts)            # (B,) CLIPScore: 2.5 max(cos, 0)
    judge.embed_images(images)            # (B, D), unit length

Images are (B, 3, H, W) RGB in [0, 1]; other sizes than 128 pixels are resized.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from loracomp.evaluation.glyph_judge import JudgeConfig, build_clip, normalized, tokenize


class Judge:
    """A trained judge with its prompts encoded; see the module's docstring."""

    def __init__(self, clip: nn.Module, config: JudgeConfig, tokenizer: Tokenizer) -> None:
        self.clip = clip.eval()
        self.config = config
        self.tokenizer = tokenizer
        self.subjects, self.styles, self.colors = config.subjects, config.styles, config.colors
        self.device = next(clip.parameters()).device
        named = [f"a {name} emoji" for name in config.subject_names]
        self._subjects = self.embed_texts(named)
        self._styles = self.embed_texts(list(config.style_phrases))
        self._colors = self.embed_texts([f"{color} background" for color in config.colors])
        heads = {slug: group[0] for group in config.groups for slug in group}
        names = [heads.get(slug, slug) for slug in config.subjects]
        self.groups = tuple(sorted(set(names)))
        at = {name: i for i, name in enumerate(self.groups)}
        self.group_index = torch.tensor([at[name] for name in names], device=self.device)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) of images (B, 3, H, W) in [0, 1]."""
        shown = normalized(images.to(self.device, torch.float32))
        return F.normalize(self.clip.encode_image(shown), dim=-1)  # type: ignore[operator]

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (T, D) of texts."""
        ids = tokenize(self.tokenizer, texts).to(self.device)
        return F.normalize(self.clip.encode_text(ids), dim=-1)  # type: ignore[operator]

    def subject_probabilities(self, images: Tensor) -> Tensor:
        """(B, subjects): zero-shot over all names, calibrated."""
        return self._shares(images, self._subjects, "subject")

    def group_probabilities(self, images: Tensor) -> Tensor:
        """(B, groups): subject probabilities summed over look-alikes, in the order of ``groups``."""
        each = self.subject_probabilities(images)
        out = each.new_zeros(len(each), len(self.groups))
        return out.index_add(1, self.group_index, each)

    def style_probabilities(self, images: Tensor) -> Tensor:
        """(B, styles): zero-shot over all styles and filters, calibrated."""
        return self._shares(images, self._styles, "style")

    def color_probabilities(self, images: Tensor) -> Tensor:
        """(B, colors): zero-shot over the named backgrounds, calibrated."""
        return self._shares(images, self._colors, "color")

    def score(self, images: Tensor, texts: list[str]) -> Tensor:
        """CLIPScore (B,) of each image with its text: 2.5 times the cosine, at least 0."""
        cosine = (self.embed_images(images) * self.embed_texts(texts)).sum(-1)
        return 2.5 * cosine.clamp_min(0)

    def _shares(self, images: Tensor, prompts: Tensor, kind: str) -> Tensor:
        scale = self.config.temperatures.get(kind, 20.0)
        return (scale * self.embed_images(images) @ prompts.T).softmax(-1)


def load_judge(folder: str | Path, device: str = "cpu") -> Judge:
    """Read ``config.json``, ``tokenizer.json`` and ``model.safetensors`` (fp16) from ``folder``."""
    folder = Path(folder)
    config = JudgeConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
    clip = build_clip(config)
    state = load_file(folder / "model.safetensors")
    clip.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return Judge(clip.to(device), config, Tokenizer.from_file(str(folder / "tokenizer.json")))
