"""The zero-shot judge that both implementations share: two encoders and a vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.evaluation.judge import CLIPSCORE_WEIGHT, Vocabulary


class ClipJudge:
    """Judges by the cosines between a picture and the texts of everything that it can name.

    Args:
        name: What it was opened by.
        encode_image: Pictures (B, 3, H, W) in [0, 1] to vectors (B, D), any length.
        encode_text: Texts to vectors (T, D), any length.
        vocabulary: What it can name.
        temperatures: Factor on the cosines before the softmax, for ``subject``, ``style`` and
            ``colour``; as calibrated.
    """

    def __init__(
        self,
        name: str,
        encode_image: Callable[[Tensor], Tensor],
        encode_text: Callable[[list[str]], Tensor],
        vocabulary: Vocabulary,
        temperatures: Mapping[str, float],
    ) -> None:
        self.name = name
        self.vocabulary = vocabulary
        self._encode_image = encode_image
        self._encode_text = encode_text
        self._temperatures = temperatures

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Unit vectors (B, D) of pictures (B, 3, H, W) in [0, 1]."""
        return F.normalize(self._encode_image(pictures).float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (T, D) of texts."""
        return F.normalize(self._encode_text(list(texts)).float(), dim=-1)

    def subjects(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, heads), summed over look-alikes, in the order of ``vocabulary.heads``."""
        each = self._shares(pictures, self._prompts["subject"], "subject")
        return each.new_zeros(len(each), len(self.vocabulary.heads)).index_add(1, self._head_index, each)

    def styles(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, styles), in the order of ``vocabulary.styles``."""
        return self._shares(pictures, self._prompts["style"], "style")

    def colours(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, colours), in the order of ``vocabulary.colours``."""
        return self._shares(pictures, self._prompts["colour"], "colour")

    def image_text(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """CLIPScore (B,): 2.5 max(cos, 0) of each picture with its prompt."""
        cosine = (self.embed(pictures) * self.embed_texts(prompts)).sum(-1)
        return CLIPSCORE_WEIGHT * cosine.clamp_min(0)

    def similarity(self, pictures: Tensor, others: Tensor) -> Tensor:
        """Cosine (B,) of each picture's embedding with the other's."""
        return (self.embed(pictures) * self.embed(others)).sum(-1)

    @cached_property
    def _prompts(self) -> dict[str, Tensor]:
        """Text embeddings of everything that can be named, by kind; computed once."""
        named = self.vocabulary
        kinds = {"subject": named.subjects, "style": named.styles, "colour": named.colours}
        return {kind: self.embed_texts(list(texts.values())) for kind, texts in kinds.items() if texts}

    @cached_property
    def _head_index(self) -> Tensor:
        at = {head: column for column, head in enumerate(self.vocabulary.heads)}
        columns = [at[head] for head in self.vocabulary.head_of.values()]
        return torch.tensor(columns, device=self._prompts["subject"].device)

    def _shares(self, pictures: Tensor, prompts: Tensor, kind: str) -> Tensor:
        return (self._temperatures[kind] * self.embed(pictures) @ prompts.T).softmax(-1)
