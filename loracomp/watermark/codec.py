"""A codec as a value: encoder, extractor, and the file that holds both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import FormatError, ResourceError
from loracomp.watermark.keys import Key
from loracomp.watermark.networks import Encoder, Extractor, Lookup, Painter, PooledExtractor, Shape

KIND = "loracomp-watermark-codec/1"
SHIPPED = Path(__file__).parents[1] / "assets" / "watermark"
LARGEST = 2_000_000
"""Bytes that a shipped codec may take."""


@dataclass(frozen=True, eq=False)
class Codec:
    """Networks and what they are for.

    Attributes:
        shape: Sizes.
        encoder: Codes to residuals.
        extractor: Pictures to coordinates.
        base: Base model whose latents it changes.
        amplitude: Root mean square of the residual, in units of the denoiser's latents.
    """

    shape: Shape
    encoder: Encoder | Lookup | Painter
    extractor: Extractor | PooledExtractor
    base: str
    amplitude: float

    @classmethod
    def fresh(cls, shape: Shape, base: str, amplitude: float = 0.1) -> Codec:
        """Untrained networks."""
        if shape.carriers == "pooled":
            return cls(shape, Painter(shape), PooledExtractor(shape), base, amplitude)
        encoder = Encoder(shape) if shape.carriers == "keyed" else Lookup(shape)
        return cls(shape, encoder, Extractor(shape), base, amplitude)

    @property
    def pooled(self) -> bool:
        """Whether marks are written into pixels by a decoder instead of into latents."""
        return self.shape.carriers == "pooled"

    @property
    def keyed(self) -> bool:
        """Whether any key's code can be written and read."""
        return self.shape.carriers == "keyed"

    def residual(self, key: Key) -> Tensor:
        """δ of a key, (1, channels, latent, latent), in units of the denoiser's latents."""
        if self.keyed:
            return self.residuals(key.direction(self.shape.dimensions).float()[None])
        return self.residuals(key.message.float()[None])

    def residuals(self, codes: Tensor) -> Tensor:
        """δ of codes (batch, dimensions): directions of length 1, or messages with fixed carriers."""
        device = next(self.encoder.parameters()).device
        return self.amplitude * self.encoder(codes.to(device))

    @torch.no_grad()
    def read(self, pictures: Tensor, batch: int = 128) -> Tensor:
        """Coordinates (images, dimensions) of pictures (images, 3, pixels, pixels) in [0, 1], on the CPU."""
        device = next(self.extractor.parameters()).device
        parts = [self.extractor(part.to(device)).float().cpu() for part in pictures.split(batch)]
        return torch.cat(parts) if parts else torch.zeros(0, self.shape.dimensions)

    def to(self, device: torch.device | str) -> Codec:
        """The codec on a device, ready to read."""
        self.encoder.to(device).eval().requires_grad_(False)
        self.extractor.to(device).eval().requires_grad_(False)
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 over sizes and 16-bit weights: that of the file's contents."""
        state = hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            state.update(name.encode() + tensor.numpy().tobytes())
        return state.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"encoder": self.encoder, "extractor": self.extractor}
        return {
            f"{part}.{name}": value.detach().half().cpu().contiguous()
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }

    def _facts(self) -> dict[str, object]:
        return {"format": KIND, "base": self.base, "amplitude": self.amplitude, "shape": self.shape.table()}

    def save(self, path: Path) -> Path:
        """Writes the codec in 16 bits.

        Raises:
            UsageError: The path cannot be written.
        """
        from safetensors.torch import save

        from loracomp.formats.writing import write_atomically

        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {KIND: json.dumps(self._facts(), sort_keys=True)}
        write_atomically(path, [save(self._tensors(), facts)])
        return path


def load_codec(path: Path) -> Codec:
    """Reads a codec.

    Raises:
        ResourceError: There is no such file.
        FormatError: It is damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ResourceError(
            f"{path}: no codec; train one with `python -m loracomp.training.watermark codec`, or give --codec"
        )
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[KIND])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        table: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["shape"].items()}
        codec = Codec.fresh(Shape(**table), str(facts["base"]), float(facts["amplitude"]))
        for part, module in (("encoder", codec.encoder), ("extractor", codec.extractor)):
            state = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
            module.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise FormatError(f"{path}: no codec ({reason}); train or fetch it anew") from None
    return codec.to("cpu")


def shipped_codec(base: str, pooled: bool = False) -> Path:
    """Where the codec of a base ships; raises :class:`ResourceError` where none does."""
    path = SHIPPED / f"{base}{'.pooled' if pooled else ''}.safetensors"
    if not path.is_file():
        raise ResourceError(
            f"no codec ships for {base}; train one with `python -m loracomp.training.watermark codec "
            f"--base {base}{' --carriers pooled' if pooled else ''}` and give it with --codec"
        )
    return path
