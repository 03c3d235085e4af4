"""What diffusers made of a file, read from the layers that PEFT put into the models."""

from __future__ import annotations

from typing import Any

import torch

from loracomp.bases import classic_path


def loaded_updates(pipe: Any) -> dict[str, torch.Tensor]:
    """The updates of all layers that PEFT has taken charge of, by loracomp's path."""
    found = {}
    for component in pipe.components:
        model = getattr(pipe, component)
        for path, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
            if hasattr(module, "get_delta_weight") and module.lora_A:
                found[classic_path(f"{component}.{path}")] = module.get_delta_weight(
                    module.active_adapters[0]
                ).detach()
    return found
