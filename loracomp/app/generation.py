"""From a request to images: the same functions as ``loracomp compose``, with ids in place of files."""

from __future__ import annotations

import re
import secrets
import tempfile
from base64 import b64decode
from binascii import Error as Base64Error
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.app.refusals import LimitError
from loracomp.app.requests import AdapterUse, Curve, GenerateRequest, shared
from loracomp.app.settings import Limits
from loracomp.errors import FormatError, UsageError

if TYPE_CHECKING:
    from loracomp.app.engine import Engine
    from loracomp.app.library import Library
    from loracomp.app.workers import Control
    from loracomp.fusion.strengths import Strength
    from loracomp.fusion.syntax import Term
    from loracomp.recipe import Recipe, Use

_TAG = re.compile(r"<lora:([^<>]*)>")
_DATA = re.compile(r"data:image/[a-z+.-]{1,20};base64,")
_PREVIEW_S = 0.7
Drawn = list[tuple[Any, "Recipe"]]


def settled(request: GenerateRequest, library: Library, limits: Limits) -> GenerateRequest:
    """The request with its seed drawn and its tags resolved, within limits: the same again draws the same.

    Raises:
        LimitError: More than may be asked for at once.
        NotFoundError: An adapter that is not in the library.
        UsageError: A tag that cannot be understood.
    """
    prompt, tagged = _tags(request.prompt, library)
    if not prompt.strip():
        raise UsageError("no prompt; say what to draw")
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    adapters = (*request.adapters, *tagged)
    sizes = {
        "adapters": (len(adapters), limits.adapters),
        "steps": (request.steps or 0, limits.steps),
        "images": (request.batch, limits.batch),
        "pixels a side": (max(request.width or 0, request.height or 0), limits.side),
    }
    for what, (value, most) in sizes.items():
        if value > most:
            raise LimitError(f"{value} {what} are more than the {most} that are allowed here")
    for use in adapters:
        library.path(use.id)
    return request.model_copy(update={"prompt": prompt, "adapters": adapters, "seed": seed})


def recipe_of(request: GenerateRequest, library: Library, base: str, dtype: str, device: str) -> Recipe:
    """The recipe of a settled request; its sources are files, so it is not for the eyes of users.

    Raises what ``loracomp compose`` would: unknown methods, options, schedulers, settings, blocks.
    """
    from loracomp.drawing import plan

    options = dict(request.options)
    if request.method == "roles" and any(use.role for use in request.adapters):
        options.setdefault("roles", [use.role or "style" for use in request.adapters])
    return plan(
        request.prompt,
        base,
        uses=tuple(_use(use, library) for use in request.adapters),
        options=options,
        programs=request.programs or None,
        negative=request.negative or None,
        scheduler=request.scheduler or None,
        dtype=dtype,
        device=device,
        **shared(request),
    )


def draw(request: GenerateRequest, library: Library, engine: Engine, control: Control) -> Drawn:
    """The images of a settled request, each with a recipe that names adapters and no folders.

    Raises:
        StoppedError: The job has to end; it does so after the step under way.
        LoracompError: See :func:`loracomp.drawing.draw`.
    """
    from loracomp.app.watching import watching
    from loracomp.drawing import draw as compose

    with ExitStack() as held:
        control.step(0, 0, message="waiting for the base model" if not engine.ready else "opening adapters")
        pipe = held.enter_context(engine.pipe(request.scheduler))
        recipe = recipe_of(request, library, engine.base, engine.dtype, "auto")
        if request.preview:
            held.enter_context(watching(pipe, control.preview, _PREVIEW_S))
        drawn = compose(recipe, pipe=pipe, on_step=control.step)
    for use, spot in zip(request.adapters, drawn[0][1].uses, strict=True):
        library.know(use.id, spot.digest)
    return [(image, public_recipe(used)) for image, used in drawn]


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe with shipped names and file names in place of paths."""
    from loracomp.library import SHIPPED

    def source(use: Use) -> str:
        path = Path(use.source)
        return path.stem if path.parent == SHIPPED else path.name

    uses = tuple(replace(use, source=source(use)) for use in recipe.uses)
    base = Path(recipe.base).name if recipe.base.startswith(("/", "~", ".")) else recipe.base
    return replace(recipe, uses=uses, base=base)


def _use(use: AdapterUse, library: Library) -> Use:
    from loracomp.drawing import use_of
    from loracomp.fusion.syntax import parse_settings

    settings = ":".join(part for part in (str(_strength(use)), use.settings) if part)
    term = parse_settings(str(library.path(use.id)), settings)
    return replace(use_of(term), mask=_mask(use.mask) if use.mask else "")


def _strength(use: AdapterUse) -> Strength:
    from loracomp.fusion import curves
    from loracomp.fusion.strengths import Strength

    if use.curve is None:
        return Strength.constant(use.weight)
    return Strength.of(1.0, curves.Curve(use.curve.points, use.curve.axis, use.curve.shape))


def _mask(text: str) -> str:
    """A painted mask, of any picture format, as recipes keep it."""
    from loracomp.fusion.pictures import read_mask

    start = _DATA.match(text)
    try:
        raw = b64decode(text[start.end() :] if start else text, validate=True)
    except (Base64Error, ValueError):
        raise FormatError("the mask is no picture; send it as base64 or as a data URI") from None
    with tempfile.NamedTemporaryFile(prefix="mask-", suffix=".png") as file:
        file.write(raw)
        file.flush()
        return read_mask(Path(file.name))


def _tags(prompt: str, library: Library) -> tuple[str, tuple[AdapterUse, ...]]:
    """The prompt without its tags, and what they name: names of the library, never paths."""
    if not _TAG.search(prompt):
        return prompt, ()
    from loracomp.fusion.syntax import split_prompt

    text, terms = split_prompt(prompt)
    return text, tuple(use_of_term(term, library.by_name(term.source).id) for term in terms)


def use_of_term(term: Term, id_: str, mask: str = "") -> AdapterUse:
    """A term of the short syntax as part of a request."""
    shape = term.profile.curve
    points = tuple((place, term.weight * factor) for place, factor in shape.points) if shape else ()
    curve = Curve(points=points, axis=shape.axis, shape=shape.shape) if shape else None
    rest = term.settings.partition(":")[2]
    return AdapterUse(id=id_, weight=term.weight, curve=curve, settings=rest, mask=mask)
