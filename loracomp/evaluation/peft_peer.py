"""diffusers' own way with LoRAs (``load_lora_weights``, ``set_adapters``), to compare with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank
from loracomp.pipeline import denoiser_of


def state_dict(adapter: Adapter, component: str) -> dict[str, Tensor]:
    """The adapter's part in one component, under the keys that diffusers writes."""
    tensors = {}
    for path, layer in adapter.component(component).items():
        plain: LowRank = layer.folded()
        tensors[f"{component}.{path}.lora_A.weight"] = plain.down.contiguous()
        tensors[f"{component}.{path}.lora_B.weight"] = plain.up.contiguous()
    return tensors


@contextmanager
def loaded(pipe: Any, adapters: Sequence[Adapter]) -> Iterator[list[str]]:
    """The denoiser's part of the adapters in PEFT's layers, all active; gives their names."""
    names = [f"peer{number}" for number in range(len(adapters))]
    component = denoiser_of(pipe)[0]
    logger = logging.getLogger("diffusers")
    level = logger.level
    # It tells of every text encoder that an adapter leaves alone.
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, adapter in zip(names, adapters, strict=True):
                pipe.load_lora_weights(state_dict(adapter, component), adapter_name=name)
            pipe.set_adapters(names, [1.0] * len(names))
            yield names
    finally:
        pipe.unload_lora_weights()
        logger.setLevel(level)
