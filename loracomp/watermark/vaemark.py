"""A mark in a decoder: low-rank factors on the last convolutions of a VAE (EW-LoRA, arXiv:2410.20202, §3).

It marks everything that this decoder draws, travels with a whole pipeline and not with a LoRA, and is gone
when the VAE is swapped or fine-tuned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.errors import BaseMismatchError, FormatError, ResourceError
from loracomp.lowrank import LowRank

KIND = "loracomp-watermark-vae/1"


@dataclass(frozen=True, eq=False)
class VaeMark:
    """Updates of a decoder's convolutions.

    Attributes:
        layers: By module path inside the VAE.
        base: Base whose decoder it is for.
        commitment: Of the key.
        extractor: Digest of the codec that reads it.
    """

    layers: Mapping[str, LowRank]
    base: str
    commitment: str
    extractor: str

    def save(self, path: Path) -> Path:
        """Writes it in 32 bits; raises :class:`UsageError` where that is not possible."""
        from safetensors.torch import save

        from loracomp.formats.writing import write_atomically

        tensors = {}
        for name, layer in sorted(self.layers.items()):
            folded = layer.folded()
            tensors[f"{name}.down"], tensors[f"{name}.up"] = folded.down.contiguous(), folded.up.contiguous()
        facts = {"base": self.base, "commitment": self.commitment, "extractor": self.extractor}
        write_atomically(path, [save(tensors, {KIND: json.dumps(facts, sort_keys=True)})])
        return path


def load_vae_mark(path: Path) -> VaeMark:
    """Reads a mark; raises :class:`ResourceError` or :class:`FormatError`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ResourceError(f"{path}: no such file; make one with `loracomp watermark vae`")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[KIND])
            names = sorted({key.rpartition(".")[0] for key in file.keys()})  # noqa: SIM118
            layers = {
                name: LowRank(file.get_tensor(f"{name}.down"), file.get_tensor(f"{name}.up"))
                for name in names
            }
        return VaeMark(layers, str(facts["base"]), str(facts["commitment"]), str(facts["extractor"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: no mark of a VAE ({str(error).splitlines()[0]})") from None


def last_stage(vae: Any) -> dict[str, nn.Conv2d]:
    """The 3 × 3 convolutions of the decoder's last, full-resolution stage, by module path.

    In diffusers that is the last of ``decoder.up_blocks``; in the original LDM code it is called ``up.0``.
    """
    number = len(vae.decoder.up_blocks) - 1
    prefix = f"decoder.up_blocks.{number}.resnets."
    return {
        path: module
        for path, module in vae.named_modules()
        if path.startswith(prefix) and path.endswith(("conv1", "conv2")) and isinstance(module, nn.Conv2d)
    }


@contextmanager
def marked(vae: Any, mark: VaeMark) -> Iterator[None]:
    """A decoder with the mark, for as long as the context lasts; then bit for bit what it was.

    Raises:
        BaseMismatchError: It is for another decoder.
    """
    pristine = apply(vae, mark)
    try:
        yield
    finally:
        for path, weight in pristine.items():
            vae.get_submodule(path).weight.data.copy_(weight)


@torch.no_grad()
def apply(vae: Any, mark: VaeMark) -> dict[str, Tensor]:
    """Adds a mark to a decoder's weights; returns the pristine weights by module path."""
    known = dict(vae.named_modules())
    pristine = {}
    for path, layer in mark.layers.items():
        module = known.get(path)
        if not isinstance(module, nn.Conv2d) or tuple(module.weight.shape) != layer.weight_shape:
            raise BaseMismatchError("the VAE's mark", mark.base, "this VAE", f"no such layer {path}")
    for path, layer in mark.layers.items():
        weight = vae.get_submodule(path).weight
        pristine[path] = weight.detach().clone()
        update = layer.to(weight.device).delta(torch.float32)
        weight.data.copy_((weight.float() + update).to(weight.dtype))
    return pristine
