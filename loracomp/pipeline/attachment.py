"""Adapters on a pipeline, live, and off again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from loracomp.adapter import Adapter
from loracomp.errors import BaseMismatchError, UsageError
from loracomp.fusion import edits, graphs, seat
from loracomp.fusion.adoption import Adopted, adopt
from loracomp.fusion.gated import method
from loracomp.fusion.gated.live import Gating
from loracomp.fusion.hook import GateHook
from loracomp.fusion.program import Program
from loracomp.fusion.regions import Masks, checked
from loracomp.fusion.score import Run
from loracomp.fusion.stacked import StackedUpdate
from loracomp.pipeline.layers import (
    Places,
    base_of,
    default_targets,
    denoiser_of,
    layers_of,
    places_of,
    text_encoders_of,
)
from loracomp.pipeline.prompts import Prompts
from loracomp.pipeline.requests import Programs, check_blocks, complete


@dataclass(frozen=True)
class Capacity:
    """Room that is reserved so that other adapters fit later without anything being rebuilt.

    Attributes:
        rank: Sum of ranks that fits in each layer at least.
        targets: ``used`` reserves it in the layers that the first adapters change; ``default`` also in
            those that adapters for this base change as a rule; suffixes of module paths name others.
    """

    rank: int = 0
    targets: Literal["used", "default"] | tuple[str, ...] = "used"


@dataclass(eq=False)
class Attachment:
    """Adapters that are live on a pipeline; a context manager that detaches at its end.

    Attributes:
        pipe: The pipeline.
        adapters: The adapters, in the order of the program's weights.
        hook: The denoiser's hook.
        updates: Stacked layers by module path, each with the module that it serves.
        prompts: The text encoders' side.
        adopted: What PEFT held before; its adapters are the first ones of :attr:`adapters`.
        edit: What the method did to their factors (:mod:`loracomp.fusion.edits`); None for nothing.
    """

    pipe: Any
    adapters: tuple[Adapter, ...]
    hook: GateHook
    updates: Mapping[str, tuple[nn.Module, StackedUpdate]]
    prompts: Prompts
    adopted: Adopted
    edit: edits.Key | None = None

    @property
    def program(self) -> Program:
        """The program that runs, that of the first image where each has its own."""
        return self.hook.programs[0]

    def set_program(self, program: Programs, weights: Sequence[float] | None = None) -> None:
        """Replaces method, weights or both; no layer is rebuilt and nothing is compiled anew."""
        chosen = complete(program, weights, self.adapters)
        check_blocks(chosen, self.updates)
        if (edit := edits.key(chosen)) != self.edit:
            self._write(places_of(self.pipe, edits.edited(self.adapters, chosen)), edit)
        self.hook.set_programs(chosen)
        self.prompts.set_programs(chosen)
        self._gate(chosen)

    def _gate(self, programs: Sequence[Program]) -> None:
        """Puts the learned gate of the programs on the denoiser's layers, or takes the one there off."""
        weights, gating = method.chosen(programs), self.hook.gating
        if gating is not None and gating.weights is weights:
            return
        if gating is not None:
            gating.leave()
        self.hook.gating = None
        if weights is None:
            return
        if weights.base != base_of(self.pipe):
            raise BaseMismatchError("the gate", weights.base, base_of(self.pipe))
        updates, denoiser = self.hook.scores.updates, denoiser_of(self.pipe)[1]
        self.hook.gating = Gating(weights, updates, len(self.adapters), denoiser)

    def set_weights(self, weights: Sequence[float]) -> None:
        """Replaces the strengths alone, in every program; the quickest change there is."""
        values = tuple(map(float, weights))
        if len(values) != len(self.adapters):
            raise UsageError(f"{len(values)} weights for {len(self.adapters)} adapters; give one per adapter")
        chosen = tuple(replace(program, weights=values) for program in self.hook.programs)
        self.hook.set_programs(chosen)
        self.prompts.set_programs(chosen)

    def swap(
        self,
        adapters: Sequence[Adapter],
        program: Programs | None = None,
        weights: Sequence[float] | None = None,
        masks: Masks = (),
    ) -> None:
        """Replaces the adapters, adopted ones too, in the tensors that are there; compiled code stays valid.

        Args:
            adapters: The new adapters; their number may differ.
            program: See :func:`attach`; by default the present method with its options.
            weights: One strength per adapter; 1.0 each by default.
            masks: Where each adapter acts; empty for everywhere.

        Raises:
            UsageError: They need more room than was reserved; nothing is changed.
            BaseMismatchError: They are for another base; nothing is changed.
        """
        chosen = complete(program or replace(self.program, weights=(), always=()), weights, adapters)
        where = checked(masks, len(adapters)) if masks else ()
        places = places_of(self.pipe, edits.edited(adapters, chosen))
        for path, (_, layers) in places.items():
            room = self.updates[path][1].capacity if path in self.updates else 0
            if (rank := sum(layer.rank for _, layer in layers)) > room:
                raise UsageError(
                    f"{path}: rank {rank} needed and {room} reserved; attach with capacity=Capacity(rank=…, "
                    'targets="default")'
                )
        self._write(places, edits.key(chosen))
        self.adapters = tuple(adapters)
        self.hook.scores.masks = where
        self.set_program(chosen)

    def _write(self, places: Places, edit: edits.Key | None) -> None:
        for path, (module, update) in self.updates.items():
            update.write(places.get(path, (module, []))[1])
        self.hook.scores.rewritten()
        self.edit = edit
        if self.hook.gating is not None:
            self.hook.gating.leave()
            self.hook.gating = None

    def set_masks(self, masks: Masks) -> None:
        """Replaces where each adapter acts, one mask or None per adapter; empty for everywhere."""
        self.hook.scores.masks = checked(masks, len(self.adapters)) if masks else ()
        self.hook.scores.forget()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        detach(self.pipe)


def attach(
    pipe: Any,
    adapters: Sequence[Adapter] = (),
    program: Programs = "merge",
    weights: Sequence[float] | None = None,
    *,
    masks: Masks = (),
    capacity: Capacity | None = None,
    chunk: int = 0,
    compile: bool | Mapping[str, Any] = False,
) -> Attachment:
    """Makes adapters live on a pipeline, all at once, without changing its weights.

    Every later call of the pipeline runs the program. In the text encoders an adapter acts at its weight in
    each branch in which it speaks, and accelerators (:attr:`Adapter.accelerator`) stay on throughout.
    Adapters attached before are detached first. Adapters that are active through
    ``pipe.load_lora_weights`` are taken over until :func:`detach` gives them back; they come first.

    Args:
        pipe: Any diffusers pipeline with a ``unet`` or a ``transformer``.
        adapters: Adapters for its base; may be left out where some are loaded already.
        program: A program, the name of a method, or one program per image of a batch.
        weights: One strength per adapter; 1.0 each by default. Where loaded ones are taken over they may
            be left out: they keep their strengths.
        masks: Where each adapter acts (:mod:`loracomp.fusion.regions`): per adapter a tensor (height,
            width) or (images, height, width) in [0, 1], of any size; None for everywhere.
        capacity: Room for adapters that :meth:`Attachment.swap` brings later.
        chunk: Most predictions to compute at once, where memory is short; 0 for no limit.
        compile: Compile the denoiser, inside the hook that sets the gates; a mapping holds options of
            ``torch.compile``.

    Raises:
        BaseMismatchError: A layer of an adapter is not in the pipeline, or of another shape.
        UsageError: No adapters, not one weight or mask per adapter, or a block that does not exist.
        UnknownNameError: No such method.
    """
    detach(pipe)
    _check_offloading(pipe)
    adopted = adopt(dict([denoiser_of(pipe), *text_encoders_of(pipe).items()]), base_of(pipe))
    chosen = complete(program, weights, adapters, adopted)
    adapters = (*adopted.adapters, *adapters)
    where = checked([None] * len(adopted.adapters) + list(masks), len(adapters)) if masks else ()
    places = _reserved(pipe, places_of(pipe, edits.edited(adapters, chosen)), capacity or Capacity())
    check_blocks(chosen, places)
    updates = _build(pipe, places, (capacity or Capacity()).rank)
    by_component: dict[str, dict[str, StackedUpdate]] = {}
    for path, (_, update) in updates.items():
        by_component.setdefault(path.split(".", 1)[0], {})[path] = update
    name, denoiser = denoiser_of(pipe)
    run = Run(lambda: pipe.scheduler, lambda: bool(getattr(pipe, "do_classifier_free_guidance", False)))
    hook = GateHook(by_component.pop(name, {}), chosen, run, chunk, where)
    hook.prompts = Prompts(pipe, by_component)
    seat.install(denoiser, hook)
    graphs.watch_hooks()
    if compile:
        hook.compile(dict(compile) if isinstance(compile, Mapping) else {})
    adopted.silence()
    hook.attachment = Attachment(pipe, adapters, hook, updates, hook.prompts, adopted, edits.key(chosen))
    hook.attachment.set_program(chosen)
    return hook.attachment


def detach(pipe: Any) -> None:
    """Takes everything off that :func:`attach` put on; the pipeline is bit for bit as it was."""
    denoiser = denoiser_of(pipe)[1]
    hook = seat.installed(denoiser)
    if hook is None:
        return
    for module, update in hook.attachment.updates.values():
        update.leave(module)
    hook.prompts.leave()
    hook.leave()
    seat.remove(denoiser, hook)
    hook.attachment.adopted.restore()


def _check_offloading(pipe: Any) -> None:
    models = dict([denoiser_of(pipe), *text_encoders_of(pipe).items()])
    if name := next((name for name, model in models.items() if seat.streams(model)), None):
        raise UsageError(
            f"{name} is offloaded group by group in streams, which take no further layers; "
            "attach first, and call enable_group_offload(use_stream=True) then"
        )


def _reserved(pipe: Any, places: Places, capacity: Capacity) -> Places:
    """The places, and those that are kept free for later adapters."""
    if capacity.targets == "used":
        return places
    name = denoiser_of(pipe)[0]
    default = capacity.targets == "default"
    targets = default_targets(pipe) if default else tuple(capacity.targets)
    free: Places = {
        path: (module, [])
        for path, module in layers_of(pipe).items()
        if path.endswith(targets) and path not in places and (not default or path.startswith(f"{name}."))
    }
    return {**places, **free}


@torch.inference_mode(False)
def _build(pipe: Any, places: Places, rank: int) -> dict[str, tuple[nn.Module, StackedUpdate]]:
    device = getattr(pipe, "_execution_device", None)
    names = {path.split(".", 1)[0] for path in places}
    # A model walks over all its modules to tell its dtype: asked once, not once a layer.
    dtypes = {name: getattr(getattr(pipe, name), "dtype", torch.bfloat16) for name in names}
    return {
        path: (module, StackedUpdate(layers, module, rank, device, dtypes[path.split(".", 1)[0]]))
        for path, (module, layers) in places.items()
    }
