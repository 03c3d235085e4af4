"""What a base model says to the probe prompts: text states, and the weights that read them.

Cross-attention keys and values of one base all read the same text states, so a prompt's mean state is
the natural probe of those layers. States share a large common part; it is taken off, and kept beside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.bases import get_base
from loracomp.errors import FormatError, ResourceError
from loracomp.formats import folder_weights
from loracomp.retrieval.prompts import BANK, VERSION
from loracomp.retrieval.said import Said, TokenStates
from loracomp.retrieval.sites import SiteTable, site_table

TextStates = Callable[[Sequence[str]], Tensor]
"""Texts to mean states (texts, width) of a base's text encoder."""

_RIDGE = 0.1
_KEYS = ("common", "states", "inverse", "answers", "norms")


@dataclass(frozen=True, eq=False)
class ProbeBank:
    """A base's side of the text probes; ``d`` is the width of its text states, ``p`` prompts, ``s`` layers.

    Attributes:
        base: Name of the base.
        common: Mean state over the prompts, shape (d,).
        states: Centered states, shape (p, d).
        weights: Weights of the ``s`` layers that read the text, each (rows, d), by position.
        inverse: (Σ_l WᵀW / ‖W‖² + μ)⁻¹, shape (d, d); see :mod:`loracomp.retrieval.textprobes`.
        answers: ‖W_l h(p)‖, shape (s, p).
        norms: ‖W‖ of every site of the base, shape (sites,); NaN where the weights were not at hand.
    """

    base: str
    common: Tensor
    states: Tensor
    weights: dict[int, Tensor]
    inverse: Tensor
    answers: Tensor
    norms: Tensor

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of what the features depend on."""
        state = hashlib.sha256(f"{self.base}\0{VERSION}\0".encode())
        for part in (self.common, self.states, *self.weights.values(), self.norms):
            state.update(part.half().contiguous().numpy().tobytes())
        return state.hexdigest()[:16]

    @property
    def width(self) -> int:
        """Width d of the text states."""
        return self.common.shape[0]

    def center(self, states: Tensor) -> Tensor:
        """States (n, d) without the part that all prompts share."""
        return states - self.common

    def to(self, device: torch.device | str) -> ProbeBank:
        """The bank on another device, where the text probes are then computed."""
        moved = {key: getattr(self, key).to(device) for key in _KEYS}
        weights = {place: weight.to(device) for place, weight in self.weights.items()}
        return ProbeBank(self.base, weights=weights, **moved)

    def save(self, path: Path) -> None:
        """Writes the bank as safetensors; :func:`load_bank` reads it."""
        from safetensors.torch import save_file

        tensors = {key: getattr(self, key).contiguous() for key in _KEYS}
        tensors |= {f"weight.{place}": weight.half().contiguous() for place, weight in self.weights.items()}
        save_file(tensors, path, {"base": self.base, "version": str(VERSION)})


def load_bank(path: Path) -> ProbeBank:
    """The bank that :meth:`ProbeBank.save` wrote; raises :class:`FormatError` for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        kept = {key: tensors[key] for key in _KEYS}
    except (SafetensorError, OSError, KeyError) as error:
        raise FormatError(f"{path}: not a probe bank ({error}); delete it, and it is made anew") from error
    if facts.get("version") != str(VERSION):
        raise FormatError(f"{path}: a probe bank of another version; build the index anew")
    weights = {
        int(key.removeprefix("weight.")): values.float()
        for key, values in tensors.items()
        if key.startswith("weight.")
    }
    return ProbeBank(facts.get("base", ""), weights=dict(sorted(weights.items())), **kept)


def make_bank(base: str, folder: Path, states: TextStates | None = None) -> ProbeBank:
    """The bank of a base from its folder in diffusers format.

    Args:
        base: A known base whose UNet reads the text by cross-attention.
        folder: The pipeline's folder.
        states: The text encoder; read from the folder where None.

    Raises:
        ResourceError: The folder lacks a part, or the base has no cross-attention.
    """
    table = site_table(base)
    if not table.cross:
        raise ResourceError(f"{base}: reads its text by no cross-attention, so text probes do not apply")
    weight = folder_weights(folder)
    norms = torch.full((len(table),), float("nan"))
    weights = {}
    for place, site in enumerate(table.sites):
        try:
            values = weight(site.path).float().flatten(1)
        except ResourceError:
            continue
        norms[place] = values.norm()
        if place in table.cross:
            weights[place] = values.half().float()
    spoken = (states or text_states(base, folder))(BANK)
    return _assembled(table, spoken.float(), weights, norms)


def _assembled(table: SiteTable, spoken: Tensor, weights: dict[int, Tensor], norms: Tensor) -> ProbeBank:
    common = spoken.mean(0)
    centered = spoken - common
    total = torch.zeros(len(common), len(common), dtype=torch.float64)
    for values in weights.values():
        wide = values.double()
        total += wide.T @ wide / wide.square().sum()
    ridge = _RIDGE * total.diagonal().mean() * torch.eye(len(common), dtype=torch.float64)
    answers = torch.stack([(centered @ values.T).norm(dim=1) for values in weights.values()])
    return ProbeBank(
        table.base, common, centered, weights, torch.linalg.inv(total + ridge).float(), answers, norms
    )


def text_states(base: str, folder: Path, *, end: bool = False) -> TextStates:
    """Mean text states by a pipeline's own encoders, over the words and the end, without start and padding.

    With ``end``, the states of the end token alone. See :func:`token_states` for the rest.
    """
    speak = token_states(base, folder)

    def mean(texts: Sequence[str]) -> Tensor:
        said = speak(texts)
        if end:
            return said.states[torch.arange(len(said)), said.there.sum(1) - 1]
        return said.mean()

    return mean


def token_states(base: str, folder: Path, device: str = "cpu") -> TokenStates:
    """States of all tokens by a pipeline's own encoders, without the start.

    A base with one CLIP encoder reads its last state; bases with several read the last but one of each,
    side by side, as their pipelines do. They are on the CPU, wherever they are computed.

    Raises:
        ResourceError: An encoder or tokenizer is not in the folder.
    """
    names = [name for name in get_base(base).text_encoders if (folder / name).is_dir()]
    if not names:
        raise ResourceError(f"{folder}: has no text encoder; give the folder of a diffusers pipeline")
    parts = [_encoder(folder, name, device) for name in names]

    def speak(texts: Sequence[str]) -> Said:
        read = [_said(*part, texts, len(parts) == 1) for part in parts]
        return Said(torch.cat([said.states for said in read], 2), read[0].there)

    return speak


def _encoder(folder: Path, name: str, device: str) -> tuple[Any, Any]:
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / name.replace("text_encoder", "tokenizer"))
        return tokenizer, CLIPTextModel.from_pretrained(folder / name).float().eval().to(device)
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ResourceError(f"{folder / name}: cannot be read as a CLIP text encoder ({line})") from error


def _said(tokenizer: Any, encoder: Any, texts: Sequence[str], last: bool) -> Said:
    longest = encoder.config.max_position_embeddings
    words = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        given = words.to(encoder.device)
        out = encoder(
            input_ids=given.input_ids, attention_mask=given.attention_mask, output_hidden_states=True
        )
    states = out.last_hidden_state if last else out.hidden_states[-2]
    return Said(states[:, 1:].cpu(), words.attention_mask[:, 1:].bool())
