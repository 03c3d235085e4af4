"""The plug-in for diffusers: live adapters on any text-to-image pipeline.

attachment = loracomp.attach(pipe, [cat, watercolor], "switch")
image = pipe("a cat, watercolor").images[0]
loracomp.detach(pipe)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.bases import BASES, classic_path, fit
from loracomp.errors import BaseMismatchError, UsageError
from loracomp.fusion import hook as hooks
from loracomp.fusion.program import Program
from loracomp.fusion.stacked import StackedUpdate, reshape
from loracomp.lowrank import LowRank

StepCallback = Callable[[int, int], None]


@dataclass(eq=False)
class Attachment:
    """Adapters that are live on a pipeline; a context manager that detaches at its end.

    Attributes:
        pipe: The pipeline.
        adapters: The adapters, in the order of the program's weights.
        hook: The denoiser's hook.
        updates: Stacked layers by module.
        encoders: Gate banks of the text encoders.
    """

    pipe: Any
    adapters: tuple[Adapter, ...]
    hook: hooks.GateHook
    updates: list[tuple[nn.Module, StackedUpdate]]
    encoders: list[hooks.GateBank]

    @property
    def program(self) -> Program:
        """The program that runs."""
        return self.hook.program

    def set_program(self, program: Program | str, weights: Sequence[float] | None = None) -> None:
        """Replaces method, weights or both; no layer is rebuilt."""
        chosen = _complete(program, weights, self.adapters)
        self.hook.set_program(chosen)
        gates = torch.tensor([chosen.weights])
        for bank in self.encoders:
            place = bank.updates[0].down
            bank.write(gates.to(place.device), 1, place.dtype)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        detach(self.pipe)


def denoiser_of(pipe: Any) -> tuple[str, nn.Module]:
    """Name and module of a pipeline's denoiser; raises :class:`UsageError` where it has none."""
    for name in dict.fromkeys(base.denoiser for base in BASES.values()):
        model = getattr(pipe, name, None)
        if model is not None:
            return name, model
    raise UsageError(f"{type(pipe).__name__} has neither a unet nor a transformer to attach adapters to")


def layers_of(pipe: Any) -> dict[str, nn.Module]:
    """Linear and convolution layers of the denoiser and the text encoders, by classic module path."""
    names = {denoiser_of(pipe)[0]} | {name for base in BASES.values() for name in base.text_encoders}
    return {
        classic_path(f"{name}.{path}"): module
        for name in sorted(names)
        if isinstance(getattr(pipe, name, None), nn.Module)
        for path, module in getattr(pipe, name).named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) in (2, 4) and hasattr(module, "bias")
    }


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Shape of a linear or convolution layer's weight."""
    weight: Any = layer.weight
    return tuple(weight.shape)


def base_of(pipe: Any) -> str:
    """Name of the base that the pipeline's layers belong to, or its class name for an unknown one."""
    shapes = {path: weight_shape(layer) for path, layer in layers_of(pipe).items()}
    name = max(BASES, key=lambda base: fit(shapes, base))
    return name if fit(shapes, name) > 0.9 else type(pipe).__name__


def attach(
    pipe: Any,
    adapters: Sequence[Adapter],
    program: Program | str = "merge",
    weights: Sequence[float] | None = None,
) -> Attachment:
    """Makes adapters live on a pipeline, all at once, without changing its weights.

    Every later call of the pipeline runs the program. Text-encoder layers act with the program's
    weights in every method, and accelerators (:attr:`Adapter.accelerator`) stay on throughout.
    Adapters attached before are detached first.

    Args:
        pipe: Any diffusers pipeline with a ``unet`` or a ``transformer``.
        adapters: One or more adapters for its base.
        program: A program, or the name of a method.
        weights: One strength per adapter; 1.0 each by default.

    Raises:
        BaseMismatchError: A layer of an adapter is not in the pipeline, or of another shape.
        UsageError: No adapters, or not one weight per adapter.
        UnknownNameError: No such method.
    """
    chosen = _complete(program, weights, adapters)
    chosen.table(1)
    detach(pipe)
    places = _places(pipe, adapters)
    updates = [(module, StackedUpdate(layers, module)) for module, layers in places.values()]
    by_component: dict[str, list[StackedUpdate]] = {}
    for path, (_, update) in zip(places, updates, strict=True):
        by_component.setdefault(path.split(".", 1)[0], []).append(update)
    name, denoiser = denoiser_of(pipe)
    hook = hooks.GateHook(by_component.pop(name, []), chosen, lambda: pipe.scheduler)
    encoders = [hooks.GateBank(group) for group in by_component.values()]
    hooks.install(denoiser, hook)
    hook.attachment = Attachment(pipe, tuple(adapters), hook, updates, encoders)
    hook.attachment.set_program(chosen)
    return hook.attachment


def detach(pipe: Any) -> None:
    """Takes everything off that :func:`attach` put on; the pipeline is bit for bit as it was."""
    denoiser = denoiser_of(pipe)[1]
    hook = hooks.installed(denoiser)
    if hook is None:
        return
    for module, update in hook.attachment.updates:
        update.leave(module)
    hooks.remove(denoiser, hook)


@contextmanager
def _bar(pipe: Any, on_step: StepCallback | None, steps: int) -> Iterator[dict[str, Any]]:
    """Arguments that report steps to ``on_step`` instead of diffusers' own progress bar."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)

    def report(_: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, steps)
        return values

    try:
        yield {"callback_on_step_end": report}
    finally:
        pipe.set_progress_bar_config(**({"disable": False} | before))


def compose(
    pipe: Any,
    prompt: str,
    adapters: Sequence[Adapter] = (),
    method: Program | str = "merge",
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    batch: int = 1,
    on_step: StepCallback | None = None,
    **settings: Any,
) -> list[Any]:
    """Draws images with several adapters and leaves the pipeline as it was.

    Args:
        pipe: A pipeline, for example from :func:`loracomp.open_base`.
        prompt: What to draw.
        adapters: Adapters to compose; none draws with the base alone.
        method: A program, or the name of a method.
        weights: One strength per adapter; 1.0 each by default.
        seed: Seed of the first image; image i of a batch has seed + i.
        batch: Number of images, drawn together.
        on_step: Called with (steps done, steps in all) after each step.
        **settings: Further arguments of the pipeline's call (``num_inference_steps``, …).

    Returns:
        PIL images, ``batch`` of them.
    """
    steps = int(settings.get("num_inference_steps", 0))
    generators = [torch.Generator().manual_seed(seed + index) for index in range(batch)]
    if adapters:
        attach(pipe, adapters, method, weights)
    try:
        with _bar(pipe, on_step, steps) as reporting, torch.inference_mode():
            return list(
                pipe(
                    prompt=prompt, num_images_per_prompt=batch, generator=generators, **reporting, **settings
                ).images
            )
    finally:
        if adapters:
            detach(pipe)


def _complete(
    program: Program | str, weights: Sequence[float] | None, adapters: Sequence[Adapter]
) -> Program:
    """The program with exactly one weight per adapter, in which accelerators are always on."""
    count = len(adapters)
    chosen = Program(program) if isinstance(program, str) else program
    values = tuple(weights) if weights is not None else chosen.weights or (1.0,) * count
    if not count:
        raise UsageError("no adapters given; name at least one, or draw with the base alone")
    if len(values) != count:
        raise UsageError(f"{len(values)} weights for {count} adapters; give one weight per adapter")
    always = {index for index, adapter in enumerate(adapters) if adapter.accelerator}
    return replace(chosen, weights=values, always=tuple(sorted(always | set(chosen.always))))


Places = dict[str, tuple[nn.Module, list[tuple[int, LowRank]]]]


def _places(pipe: Any, adapters: Sequence[Adapter]) -> Places:
    """Modules of the pipeline that the adapters change, each with (adapter index, update) pairs."""
    layers = layers_of(pipe)
    places: Places = {}
    for index, adapter in enumerate(adapters):
        for path, update in adapter.layers.items():
            module = layers.get(path)
            if module is None:
                raise _mismatch(pipe, adapter, f"the base has no layer {path}")
            try:
                fitted = reshape(update, weight_shape(module))
            except ValueError as error:
                raise _mismatch(pipe, adapter, f"{path}: {error}") from error
            places.setdefault(path, (module, []))[1].append((index, fitted))
    return places


def _mismatch(pipe: Any, adapter: Adapter, why: str) -> BaseMismatchError:
    title = BASES[adapter.base].title if adapter.base in BASES else adapter.base
    here = base_of(pipe)
    return BaseMismatchError(adapter.name, title, BASES[here].title if here in BASES else here, why)


__all__ = ["Attachment", "attach", "base_of", "compose", "denoiser_of", "detach", "layers_of"]
