"""An adapter as a value: what a LoRA file means once its dialect is forgotten."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import torch

from loracomp.lowrank import LowRank


@dataclass(frozen=True)
class Acceleration:
    """How to draw with an accelerator: an adapter that lets the base draw in a few steps.

    Attributes:
        steps: Denoising steps that it is made for.
        guidance: Guidance scale to draw at; 1.0, since guidance is learned.
    """

    steps: int
    guidance: float = 1.0

    KEY: ClassVar[str] = "loracomp.accelerator"

    def to_json(self) -> str:
        """The header's value under :attr:`KEY`."""
        return json.dumps({"steps": self.steps, "guidance": self.guidance}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Acceleration | None:
        """What :meth:`to_json` wrote, or None for anything else: headers come from anywhere."""
        try:
            parts = json.loads(text)
            steps, guidance = int(parts["steps"]), float(parts["guidance"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        return cls(steps, guidance) if 1 <= steps <= 1000 and 0 <= guidance <= 100 else None


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank updates of a base model, keyed by the diffusers module path of the layer.

    A path begins with the pipeline component, as in
    ``unet.down_blocks.0.attentions.0.proj_in`` or
    ``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``.

    Attributes:
        layers: Updates by module path, sorted.
        base: Name of the base it was made for, a key of :data:`loracomp.bases.BASES`.
        name: What users call it.
        metadata: Strings from the file's header (``ss_*``, ``modelspec.*``).
    """

    layers: Mapping[str, LowRank]
    base: str
    name: str = "adapter"
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ordered = {path: self.layers[path] for path in sorted(self.layers)}
        object.__setattr__(self, "layers", MappingProxyType(ordered))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over paths, alphas and tensors: equal for equal content, whatever file it came from."""
        state = hashlib.sha256()
        for path, layer in self.layers.items():
            state.update(f"{path}\0{layer.alpha!r}\0".encode())
            for factor in (layer.down, layer.up):
                state.update(f"{factor.dtype}{tuple(factor.shape)}".encode())
                raw = factor.detach().cpu().contiguous().flatten().view(torch.uint8)
                state.update(raw.numpy().tobytes())
        return state.hexdigest()

    @property
    def components(self) -> tuple[str, ...]:
        """Pipeline components that the adapter changes (``unet``, ``text_encoder``, …), sorted."""
        return tuple(sorted({path.split(".", 1)[0] for path in self.layers}))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks of its layers, ascending."""
        return tuple(sorted({layer.rank for layer in self.layers.values()}))

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """Words that call the adapter in a prompt (``modelspec.trigger_phrase``, comma-separated)."""
        phrase = self.metadata.get("modelspec.trigger_phrase", "")
        return tuple(word.strip() for word in phrase.split(",") if word.strip())

    @property
    def accelerator(self) -> Acceleration | None:
        """How to draw with it if it is an accelerator (``loracomp.accelerator``); None for all others."""
        return Acceleration.from_json(self.metadata.get(Acceleration.KEY, ""))

    def map(self, change: Callable[[LowRank], LowRank]) -> Adapter:
        """The adapter with ``change`` applied to each layer."""
        return replace(self, layers={path: change(layer) for path, layer in self.layers.items()})

    def scaled(self, weight: float) -> Adapter:
        """The adapter with each update multiplied by ``weight``."""
        return self.map(lambda layer: layer.scaled(weight))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Adapter:
        """The adapter on another device or in another dtype."""
        return self.map(lambda layer: layer.to(device, dtype))

    def component(self, name: str) -> dict[str, LowRank]:
        """The updates of one pipeline component, keyed by the path inside it."""
        prefix = f"{name}."
        return {p.removeprefix(prefix): v for p, v in self.layers.items() if p.startswith(prefix)}
