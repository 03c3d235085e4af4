"""From a recipe to images: opens what it names, composes, and records what was used."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from loracomp.adapter import Adapter
from loracomp.bases import BASES, get_base
from loracomp.errors import BaseMismatchError, FormatError, ResourceError, UsageError
from loracomp.formats import base_layers
from loracomp.fusion import METHODS, Program
from loracomp.fusion.pictures import mask_of
from loracomp.fusion.syntax import Term, parse_settings
from loracomp.fusion.variants import Variant, fitted, program_of
from loracomp.library import acceleration, find, open_adapter
from loracomp.loading import DTYPES, SCHEDULERS, defaults, open_base
from loracomp.pipeline import Attachment, StepCallback, base_of, compose, denoiser_of
from loracomp.pipeline.facts import resolve_all
from loracomp.pipeline.layers import own_layers
from loracomp.pipeline.measured import recall
from loracomp.recipe import Recipe, Use

Drawn = list[tuple[Any, Recipe]]


def plan(prompt: str, base: str = "glyph", **choices: Any) -> Recipe:
    """A recipe with the accelerator's or the base's defaults where ``choices`` holds None.

    Raises:
        UnknownNameError: No such method or scheduler.
    """
    row = BASES.get(base)
    known = defaults(base, row) if row else {}
    side = row.resolution if row else 0
    known |= {"width": side, "height": side} | _few_steps(choices.get("uses") or ())
    recipe = Recipe(prompt, base=base, **known | {k: v for k, v in choices.items() if v is not None})
    METHODS.entry(recipe.method)
    if recipe.scheduler:
        SCHEDULERS.entry(recipe.scheduler)
    return _checked(recipe)


def draw(
    recipe: Recipe,
    *,
    pipe: Any = None,
    offload: str = "none",
    on_step: StepCallback | None = None,
    on_attach: Callable[[Attachment], None] | None = None,
    variants: Sequence[Variant] = (),
) -> Drawn:
    """The images of a recipe, each with the recipe that repeats it.

    Args:
        recipe: What to draw; a ``device`` or ``dtype`` of ``auto`` is settled here.
        pipe: A pipeline of the recipe's base that is open already.
        offload: See :func:`loracomp.loading.open_base`.
        on_step: Called with (steps done, steps in all).
        on_attach: Called with the attachment before the first step.
        variants: What sets each image apart; as many as the recipe's batch, or none.

    Raises:
        BaseMismatchError: An adapter was made for another base.
        FormatError: An adapter is not the one that the recipe was drawn with, or a mask or a program in
            it is damaged.
        UsageError: Strengths, blocks or programs that do not fit the adapters.
        ResourceError: The base is missing.
    """
    _checked(recipe)
    own = None
    if recipe.base not in BASES:
        pipe = _base(recipe, offload) if pipe is None else pipe
        own = own_layers(pipe)
    adapters = [open_adapter(use.source, modules=own) for use in recipe.uses]
    uses = tuple(_same(use, adapter) for use, adapter in zip(recipe.uses, adapters, strict=True))
    _fits_base(recipe, adapters)
    masks = [mask_of(use.mask) if use.mask else None for use in uses]
    programs = _programs(recipe, adapters, variants)
    # A known base is opened late: it is large, and adapters of another one are refused before.
    pipe = _base(recipe, offload) if pipe is None else pipe
    told = on_step or (lambda done, total: None)
    folders = {find(use.source).parent for use in uses}
    programs = resolve_all(pipe, recipe.prompt, adapters, programs, folders=folders, progress=told)
    recipe = _settled(replace(recipe, uses=uses, programs=_recorded(recipe, programs)), pipe)
    images = compose(
        pipe,
        recipe.prompt,
        adapters,
        programs,
        masks=masks if any(use.mask for use in uses) else (),
        seed=recipe.seeds,
        batch=recipe.batch,
        on_step=on_step,
        on_attach=on_attach,
        **_settings(recipe, pipe),
    )
    return [(image, _of_image(recipe, programs, index)) for index, image in enumerate(images)]


def _base(recipe: Recipe, offload: str) -> Any:
    scheduler = recipe.scheduler or None
    return open_base(
        recipe.base, dtype=recipe.dtype, device=recipe.device, offload=offload, scheduler=scheduler
    )


def redraw(recipe: Recipe, **choices: Any) -> Drawn:
    """The one image that ``recipe`` describes, drawn in the batch that it came from."""
    return [draw(recipe, **choices)[recipe.index]]


def weighed(recipe: Recipe, strength: float) -> Recipe:
    """The recipe with each adapter at ``strength`` times the effect of its weight; accelerators stay.

    Raises:
        UsageError: A strength that is not finite, or an adapter with more than a plain weight.
        ResourceError: The effect of an adapter was not measured on this base.
    """
    if not abs(strength) < float("inf"):
        raise UsageError(f"--strength {strength}: a number is needed, such as 0.5")
    return replace(recipe, uses=tuple(_weighed(use, recipe.base, strength) for use in recipe.uses))


def _weighed(use: Use, base: str, strength: float) -> Use:
    known_base, own = base_layers(base)
    adapter = open_adapter(use.source, modules=own)
    if adapter.accelerator is not None:
        return use
    if use.settings:
        raise UsageError(f"--strength goes with plain weights; write --lora {use.source}:{use.weight:g}")
    known = recall(adapter, known_base or base, [find(use.source).parent])
    if known is None or known.effect is None:
        raise ResourceError(
            f"{use.source}: its effect on {base} is not measured; `loracomp profile {use.source} --effect`"
        )
    return replace(use, weight=round(known.effect.share(strength, use.weight), 4))


def use_of(term: Term) -> Use:
    """A term of the short syntax as part of a recipe."""
    plain = term == Term(term.source, term.weight)
    return Use(term.source, term.weight, settings="" if plain else term.settings)


def _programs(
    recipe: Recipe, adapters: Sequence[Adapter], variants: Sequence[Variant]
) -> tuple[Program, ...]:
    """One program for all images, or one per image."""
    if recipe.programs:
        try:
            found = [Program.from_json(json.dumps(parts)) for parts in recipe.programs]
        except UsageError as error:
            raise FormatError(f"a recipe with {error}") from error
        programs = tuple(fitted(program, adapters, "the program") for program in found)
    else:
        terms = [
            parse_settings(u.source, u.settings) if u.settings else Term(u.source, u.weight)
            for u in recipe.uses
        ]
        programs = (program_of(terms, adapters, recipe.method, recipe.options),)
    if variants:
        programs = tuple(variant.of(programs[0]) for variant in variants)
    if len(programs) > 1 and len(programs) != recipe.batch:
        raise UsageError(f"{len(programs)} programs for {recipe.batch} images; leave out --batch")
    return programs


def _recorded(recipe: Recipe, programs: Sequence[Program]) -> tuple[dict[str, Any], ...]:
    """The programs as data, where method, options and weights do not say it all."""
    weights = tuple(use.weight for use in recipe.uses)
    if list(programs) == [Program(recipe.method, weights, recipe.options)]:
        return ()
    return tuple(json.loads(program.to_json()) for program in programs)


def _of_image(recipe: Recipe, programs: Sequence[Program], index: int) -> Recipe:
    """The recipe of one image of a batch, with the weights and the method that it was drawn with."""
    program = programs[index if len(programs) > 1 else 0]
    uses = tuple(replace(u, weight=w) for u, w in zip(recipe.uses, program.weights, strict=True))
    return replace(recipe, uses=uses, method=program.method, options=program.options, index=index)


def _few_steps(uses: Sequence[Use]) -> dict[str, Any]:
    """Defaults of the first accelerator among the adapters."""
    for use in uses:
        if fast := acceleration(use.source):
            return {"steps": fast.steps, "guidance": fast.guidance, "guidance_rescale": 0.0}
    return {}


def _checked(recipe: Recipe) -> Recipe:
    limits = {
        "steps": (1, 1000),
        "batch": (1, 256),
        "index": (0, recipe.batch - 1),
        "guidance": (0, 100),
        "guidance_rescale": (0, 1),
        "seed": (0, 2**63 - 257),
    }
    for name, (low, high) in limits.items():
        value = getattr(recipe, name)
        if not low <= value <= high:
            raise UsageError(f"--{name.replace('_', '-')} {value} is outside {low} … {high}")
    for name in ("width", "height"):
        value = getattr(recipe, name)
        if value < 0 or value % 8 or value > 8192:
            raise UsageError(f"--size: {name} {value} is not a multiple of 8 between 8 and 8192")
    return recipe


def _same(use: Use, adapter: Adapter) -> Use:
    """The use with the adapter's name and hashes; refuses another adapter than the recipe's."""
    if use.digest and use.digest != adapter.digest:
        raise FormatError(
            f"{use.source}: not the adapter this image was drawn with "
            f"(content {adapter.digest[:12]}, recipe {use.digest[:12]}); find the original file"
        )
    short = adapter.metadata.get("sshs_model_hash", "")[:12]
    return replace(use, name=use.name or adapter.name, digest=adapter.digest, hash=short)


def _fits_base(recipe: Recipe, adapters: Sequence[Adapter]) -> None:
    """Refuses an adapter of another known base before anything large is opened."""
    if recipe.base not in BASES:
        return
    here = get_base(recipe.base)
    for adapter in adapters:
        if adapter.base != here.name:
            there = BASES[adapter.base].title if adapter.base in BASES else adapter.base
            raise BaseMismatchError(adapter.name, there, here.title)


def _settled(recipe: Recipe, pipe: Any) -> Recipe:
    """The recipe with everything that was left to the pipeline filled in."""
    import diffusers
    import torch

    import loracomp

    row = BASES.get(recipe.base) or BASES.get(base_of(pipe))
    denoiser: Any = denoiser_of(pipe)[1]
    side = row.resolution if row else pipe.vae_scale_factor * denoiser.config.sample_size
    names = {value: key for key, value in DTYPES.items()}
    return replace(
        recipe,
        width=recipe.width or side,
        height=recipe.height or side,
        dtype=names.get(pipe.dtype, recipe.dtype),
        device=getattr(pipe, "_execution_device", pipe.device).type,
        versions={
            "loracomp": loracomp.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    )


def _settings(recipe: Recipe, pipe: Any) -> dict[str, Any]:
    """Arguments of the pipeline's call; what it cannot do is an error, never dropped in silence."""
    values: dict[str, Any] = {
        "num_inference_steps": recipe.steps,
        "guidance_scale": recipe.guidance,
        "width": recipe.width,
        "height": recipe.height,
    }
    if recipe.negative:
        values["negative_prompt"] = recipe.negative
    if recipe.guidance_rescale:
        values["guidance_rescale"] = recipe.guidance_rescale
    known = signature(type(pipe).__call__).parameters
    for name in values:
        if name not in known:
            flag = {"negative_prompt": "negative"}.get(name, name).replace("_", "-")
            raise UsageError(f"--{flag}: {type(pipe).__name__} does not take it; leave it out")
    return values
