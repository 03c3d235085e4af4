"""LoRA layers on a pipeline through PEFT: put in, read out as an :class:`Adapter`, take off again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.bases import classic_path
from loracomp.errors import TrainingError, UsageError
from loracomp.lowrank import LowRank
from loracomp.pipeline import denoiser_of
from loracomp.training.order import generator_for

ADAPTER = "trained"
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, eq=False)
class Injected:
    """Trainable layers of a pipeline.

    Attributes:
        models: The pipeline's components that carry them.
        layers: PEFT's layers by classic module path, sorted.
        alpha: Network alpha.
    """

    models: tuple[nn.Module, ...]
    layers: Mapping[str, Any]
    alpha: float

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The trainable parameters as ``PATH.down`` and ``PATH.up``."""
        out: dict[str, nn.Parameter] = {}
        for path, layer in self.layers.items():
            out[f"{path}.down"] = layer.lora_A[ADAPTER].weight
            out[f"{path}.up"] = layer.lora_B[ADAPTER].weight
        return out

    def updates(self) -> dict[str, LowRank]:
        """Copies of the updates on the CPU.

        Raises:
            TrainingError: A value is not finite, or nothing was learned (every up matrix is zero).
        """
        values = {name: tensor.detach().cpu().clone() for name, tensor in self.tensors.items()}
        check_learned(values)
        return {p: LowRank(values[f"{p}.down"], values[f"{p}.up"], self.alpha) for p in self.layers}

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The base alone, for as long as the context lasts."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    def remove(self) -> None:
        """Takes the layers off; the pipeline is as it was."""
        from diffusers.utils import recurse_remove_peft_layers

        for model in self.models:
            recurse_remove_peft_layers(model)
            if hasattr(model, "peft_config"):
                del model.peft_config


def inject(
    pipe: Any, *, rank: int, alpha: float, targets: Sequence[str], text_encoders: Sequence[str], seed: int
) -> Injected:
    """Freezes the base and puts trainable fp32 LoRA layers on it.

    Args:
        pipe: The pipeline.
        rank: Rank of every layer.
        alpha: Network alpha.
        targets: Module suffixes of the denoiser.
        text_encoders: Components to adapt as well; those without CLIP's layers are left alone.
        seed: Decides the down matrices; up matrices start at zero.

    Raises:
        UsageError: No module of the denoiser has one of the suffixes.
    """
    freeze(pipe)
    name, denoiser = denoiser_of(pipe)
    layers = {f"{name}.{path}": layer for path, layer in _inject(denoiser, rank, alpha, targets).items()}
    models = [denoiser]
    for encoder in text_encoders:
        model = getattr(pipe, encoder)
        if any(path.endswith("q_proj") for path, _ in model.named_modules()):
            found = _inject(model, rank, alpha, TEXT_TARGETS)
            layers |= {classic_path(f"{encoder}.{path}"): layer for path, layer in found.items()}
            models.append(model)
    injected = Injected(tuple(models), dict(sorted(layers.items())), alpha)
    _initialise(injected, seed)
    return injected


def check_learned(values: Mapping[str, Tensor]) -> None:
    """Raises :class:`TrainingError` unless all values are finite and every component has learned.

    A component whose up matrices are all zero adds nothing to the base: the run was for nothing.
    """
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise TrainingError(f"{name}: not finite after training; lower lr or use precision=fp32")
    ups = {name: value for name, value in values.items() if name.endswith(".up")}
    moved = {name.partition(".")[0] for name, value in ups.items() if bool(value.any())}
    for component in sorted({name.partition(".")[0] for name in ups} - moved):
        raise TrainingError(
            f"{component}: nothing was learned, every up matrix is still zero; check targets and lr"
        )


def freeze(pipe: Any) -> None:
    """Puts every part of a pipeline in eval mode, without gradients of its own."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
            part.eval()


def _inject(model: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> dict[str, Any]:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    try:
        inject_adapter_in_model(config, model, ADAPTER)
    except ValueError as error:
        raise no_such_layers(model, targets) from error
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def no_such_layers(model: nn.Module, targets: Sequence[str]) -> UsageError:
    """The error of targets that name no layer of a model."""
    linear = (path for path, module in model.named_modules() if isinstance(module, nn.Linear))
    known = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in linear}))
    return UsageError(
        f"targets {', '.join(targets)}: no such layers in {type(model).__name__}; it has {known}"
    )


def _initialise(injected: Injected, seed: int) -> None:
    """Down matrices uniform in ±1/√fan_in as PEFT and kohya draw them, each from its own stream."""
    for name, parameter in injected.tensors.items():
        parameter.data = parameter.data.to(torch.float32)
        if name.endswith(".up"):
            parameter.data.zero_()
            continue
        parameter.data.copy_(fresh_down(seed, name, parameter.shape))


def fresh_down(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    """A down matrix (rank, d_in, …) to begin with; ``name`` is ``PATH.down``."""
    values = torch.rand(tuple(shape), generator=generator_for(seed, "weights", name))
    return (2 * values - 1) * math.prod(shape[1:]) ** -0.5
