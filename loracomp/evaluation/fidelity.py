"""The laws that composing has to keep on a base model, each against a way that does not use our engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from loracomp.adapter import Adapter
from loracomp.evaluation.peft_peer import loaded
from loracomp.evaluation.specimen import Bench, Shot, light, relative, specimens
from loracomp.fusion import Program
from loracomp.fusion.offline import Folding
from loracomp.pipeline import attach, denoiser_of, detach, layers_of

EXACT = 1e-4
"""Largest relative difference of final latents in float32; a step alone agrees to 1e-5."""
FOLD_BUDGET = 1 << 29
"""Most weights that are folded at once."""


@dataclass(frozen=True)
class Law:
    """One law and what came out.

    Attributes:
        name: What has to hold.
        error: Relative difference of the final latents; None where bits are compared.
        limit: Largest error allowed; 0 where bits are compared.
        holds: Whether it holds.
        note: What else there is to say.
    """

    name: str
    error: float | None
    limit: float
    holds: bool
    note: str = ""


@dataclass
class Trial:
    """A check in progress: shots that several laws need, and pictures for the sheet."""

    bench: Bench
    adapters: list[Adapter]
    base: Shot
    before: list[tuple[Any, ...]]
    limit: float
    pictures: dict[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return self.bench.pipe

    def ours(self, adapters: Sequence[Adapter], program: Any, images: int = 1) -> Shot:
        """A run with adapters attached."""
        with attach(self.pipe, adapters, program):
            return self.bench.shoot(images)

    def law(self, name: str, ours: Shot, reference: Shot, note: str = "") -> Law:
        """Compares two runs."""
        error = relative(ours.latents, reference.latents)
        return Law(name, error, self.limit, error <= self.limit, note)


def check(
    bench: Bench, on_law: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[Law], Trial]:
    """Runs all laws; the pipeline is afterwards as it was.

    Args:
        bench: The pipeline and the settings of the runs.
        on_law: Called with (laws done, laws in all).
    """
    trial = begin(bench)
    laws = []
    for number, law in enumerate(LAWS, 1):
        laws.append(law(trial))
        on_law(number, len(LAWS))
    return laws, trial


def begin(bench: Bench) -> Trial:
    """Draws with the base alone and settles how exact this arithmetic can be."""
    base = bench.shoot()
    # After a first run, for which libraries put hooks of their own.
    trial = Trial(bench, specimens(bench.pipe, 3), base, fingerprint(bench.pipe), EXACT)
    trial.pictures["base alone"] = base.pictures
    if denoiser_of(bench.pipe)[1].dtype != torch.float32:
        trial.limit = 2 * _rounding(trial)
    return trial


def _rounding(trial: Trial) -> float:
    """How far two orders of summation are apart without us: PEFT's, two adapters one way and the other."""
    two = _denoiser_part(trial)[:2]
    with loaded(trial.pipe, two):
        first = trial.bench.shoot()
    with loaded(trial.pipe, two[::-1]):
        second = trial.bench.shoot()
    return max(relative(first.latents, second.latents), EXACT)


def _denoiser_part(trial: Trial) -> list[Adapter]:
    name = denoiser_of(trial.pipe)[0] + "."
    return [
        replace(adapter, layers={p: v for p, v in adapter.layers.items() if p.startswith(name)})
        for adapter in trial.adapters
    ]


def silence(trial: Trial) -> Law:
    """Weight 0 is the base."""
    shot = trial.ours(trial.adapters, Program("merge", (0.0, 0.0, 0.0)))
    same = torch.equal(shot.latents, trial.base.latents)
    return Law("weight 0 draws what the base draws, bit for bit", None, 0.0, same)


def folding(trial: Trial) -> Law:
    """The sum of adapters is the sum of their updates in the weights, text encoders included."""
    name, weights = "merge equals the updates folded into the weights", (0.8, -0.5, 0.6)
    adapters = light(trial.adapters, FOLD_BUDGET)
    layers = layers_of(trial.pipe)
    if not all(layers[path].weight.is_floating_point() for path in adapters[0].layers):  # type: ignore[operator]
        return Law(name, None, 0.0, True, "left out: the weights are quantized")
    ours = trial.ours(adapters, Program("merge", weights))
    with Folding(layers) as folded:
        folded.fold(adapters, weights)
        reference = trial.bench.shoot()
    trial.pictures["merge of three"] = ours.pictures
    trial.pictures["folded into the weights"] = reference.pictures
    return trial.law(name, ours, reference, f"{len(adapters[0].layers)} layers")


def single(trial: Trial) -> Law:
    """One adapter is what load_lora_weights makes of it."""
    adapter = _denoiser_part(trial)[0]
    ours = trial.ours([adapter], "merge")
    with loaded(trial.pipe, [adapter]):
        reference = trial.bench.shoot()
    trial.pictures["one adapter"] = ours.pictures
    return trial.law("one adapter equals load_lora_weights", ours, reference)


def several(trial: Trial) -> Law:
    """Three adapters are what set_adapters makes of them."""
    adapters, weights = _denoiser_part(trial), [0.8, -0.5, 0.6]
    ours = trial.ours(adapters, Program("merge", tuple(weights)))
    with loaded(trial.pipe, adapters) as names:
        trial.pipe.set_adapters(names, weights)
        reference = trial.bench.shoot()
    return trial.law("three adapters equal set_adapters", ours, reference)


def turns(trial: Trial) -> Law:
    """Switch is set_adapters before every step."""
    adapters = _denoiser_part(trial)[:2]
    ours = trial.ours(adapters, Program("switch", (1.0, 0.7), {"period": 1 / trial.bench.steps}))
    with loaded(trial.pipe, adapters) as names:

        def before(step: int) -> None:
            trial.pipe.set_adapters([names[step % 2]], [(1.0, 0.7)[step % 2]])

        reference = trial.bench.shoot(before=before)
    trial.pictures["switch of two"] = ours.pictures
    return trial.law("switch equals set_adapters before every step", ours, reference)


def mixtures(trial: Trial) -> Law:
    """A batch of mixtures is its single runs."""
    programs = [Program("merge", w) for w in ((1.0, 0.0, 0.0), (0.0, 0.8, 0.4), (-0.5, 0.3, 1.0))]
    together = trial.ours(trial.adapters, programs, images=3)
    alone = [trial.ours(trial.adapters, program) for program in programs]
    trial.pictures["a batch of mixtures"] = together.pictures
    trial.pictures["the same, one by one"] = [shot.pictures[0] for shot in alone]
    reference = Shot(torch.cat([shot.latents for shot in alone]), ())
    law = trial.law("a batch of mixtures equals single runs", together, reference)
    # Other batch sizes take other kernels: what the base alone loses by that, nobody can keep.
    batched = trial.bench.shoot(3).latents
    own = 2 * relative(batched, trial.base.latents.repeat(3, *(1,) * (batched.ndim - 1)))
    limit = max(law.limit, own)
    return replace(law, limit=limit, holds=law.error is not None and law.error <= limit)


def trace(trial: Trial) -> Law:
    """detach leaves nothing behind."""
    attach(trial.pipe, trial.adapters)
    detach(trial.pipe)
    clean = fingerprint(trial.pipe) == trial.before
    same = torch.equal(trial.bench.shoot().latents, trial.base.latents)
    note = "" if clean else "modules, hooks or weights differ"
    return Law("detach leaves no trace, bit for bit", None, 0.0, clean and same, note)


LAWS: tuple[Callable[[Trial], Law], ...] = (silence, folding, single, several, turns, mixtures, trace)


def fingerprint(pipe: Any) -> list[tuple[Any, ...]]:
    """Modules, their hooks and attributes, and sums over the bits of all tensors."""
    found: list[tuple[Any, ...]] = []
    for name, model in pipe.components.items():
        if isinstance(model, nn.Module):
            found += [(name, *entry) for entry in _entries(model)]
    return found


def _entries(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    for path, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        yield (
            path,
            type(module).__name__,
            hooks,
            "forward" in vars(module),
            "_diffusers_hook" in vars(module),
        )
    for path, values in model.state_dict().items():
        yield (path, tuple(values.shape), str(values.dtype), _bits(values))


def _bits(values: torch.Tensor) -> int:
    """A sum that any changed bit changes; 0 for a tensor without data."""
    if values.device.type == "meta" or not values.numel():
        return 0
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(values.element_size())
    plain = values.detach()
    return int(plain.contiguous().view(kind).sum(dtype=torch.int64)) if kind else 0
