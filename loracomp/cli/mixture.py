"""What ``loracomp compose`` is asked to mix: adapters, programs, variants, places in the image."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.errors import FormatError, UsageError

if TYPE_CHECKING:
    from loracomp.fusion.syntax import Term
    from loracomp.fusion.variants import Variant
    from loracomp.recipe import Recipe, Use


def planned(
    prompt: str, loras: Sequence[str], said: dict[str, Any], base: str, choices: dict[str, Any]
) -> tuple[Recipe, tuple[Variant, ...]]:
    """The recipe that the options describe, and what sets its images apart.

    Args:
        prompt: As given, tags included.
        loras: Values of ``--lora``.
        said: Values of ``--program``, ``--vary``, ``--mask``, ``--box`` and ``--accelerator``.
        base: Value of ``--base``.
        choices: Further fields of the recipe; None where nothing was said.

    Raises:
        UsageError: Options that do not go together or cannot be understood.
        FormatError: A file that is damaged or not there.
    """
    from loracomp.drawing import plan
    from loracomp.fusion.syntax import parse_term, split_prompt
    from loracomp.fusion.variants import read_variants
    from loracomp.library import find

    text, tagged = split_prompt(prompt)
    terms = (*map(parse_term, loras), *tagged)
    if not text:
        raise UsageError("no prompt; say what to draw: loracomp compose 'a watermelon emoji' --lora mono")
    for term in terms:
        find(term.source)
    if said["program"]:
        choices = choices | _program(said["program"], terms, choices)
    variants = read_variants(said["vary"] or [], [term.source for term in terms])
    if said["vary"]:
        choices = choices | _batch(len(variants), "--vary", choices, terms)
    uses = _placed(terms, said["mask"] or [], said["box"] or [], _side(base, choices))
    if said["accelerator"]:
        uses = (*uses, _accelerator(said["accelerator"]))
    if choices["seed"] is None:
        choices["seed"] = time.time_ns() % 2**31
    return plan(text, base, uses=uses, **choices), variants if said["vary"] else ()


def _accelerator(text: str) -> Use:
    from loracomp.library import open_accelerator
    from loracomp.recipe import parse_use

    use = parse_use(text, "--accelerator")
    open_accelerator(use.source)
    return use


def _program(file: Path, terms: Sequence[Term], choices: dict[str, Any]) -> dict[str, Any]:
    """What a program file decides."""
    from loracomp.fusion import Program

    if taken := [name for name in ("method", "options") if choices[name]]:
        raise UsageError(f"--program has the {taken[0]} already; leave out --{taken[0].removesuffix('s')}")
    if shaped := [term for term in terms if term != replace(term, weight=1.0) or term.settings != "1"]:
        raise UsageError(f"--program has the strengths already; write --lora {shaped[0].source} alone")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        programs = [
            Program.from_json(json.dumps(part)) for part in (found if isinstance(found, list) else [found])
        ]
    except OSError as error:
        raise FormatError(f"{file}: {error.strerror}; give a JSON file with a gate program") from error
    except ValueError as error:
        raise FormatError(f"{file}: no JSON ({error})") from error
    except UsageError as error:
        raise FormatError(f"{file}: {error}") from error
    if not programs:
        raise FormatError(f"{file}: an empty list; give one program, or one per image")
    more = _batch(len(programs), str(file), choices, terms) if len(programs) > 1 else {}
    parts = tuple(json.loads(program.to_json()) for program in programs)
    return more | {"method": programs[0].method, "options": dict(programs[0].options), "programs": parts}


def _batch(count: int, what: str, choices: dict[str, Any], terms: Sequence[Term]) -> dict[str, int]:
    if choices["batch"] not in (None, count):
        raise UsageError(f"{what} makes {count} images, and --batch is {choices['batch']}; leave out --batch")
    if not terms:
        raise UsageError(f"{what} mixes adapters, and there is none; name them with --lora")
    return {"batch": count}


def _side(base: str, choices: dict[str, Any]) -> tuple[int, int]:
    """Width and height in pixels; 0 where the base decides."""
    from loracomp.bases import BASES

    side = BASES[base].resolution if base in BASES else 0
    return choices.get("width", side), choices.get("height", side)


def _placed(
    terms: Sequence[Term], masks: Sequence[str], boxes: Sequence[str], size: tuple[int, int]
) -> tuple[Use, ...]:
    """The adapters as parts of the recipe, with their places in the image."""
    from loracomp.drawing import use_of
    from loracomp.fusion.pictures import read_mask
    from loracomp.fusion.quote import Quote
    from loracomp.fusion.variants import named

    sources, found, pictures = [term.source for term in terms], list(terms), {}
    for option, texts in (("--mask", masks), ("--box", boxes)):
        for text in texts:
            name, value = Quote(text, 0, f"{option} {text}").cut("=")
            if value is None or not value.value:
                name.fail(f"write NAME={'FILE.png' if option == '--mask' else 'LEFT,TOP,RIGHT,BOTTOM'}")
            index = named(name.value, sources, f"{option} {text}")
            if index in pictures or found[index].profile.box:
                name.fail(f"{name.value} has a place already; give one mask or one box")
            if option == "--mask":
                pictures[index] = read_mask(Path(value.value).expanduser())
            else:
                profile = replace(found[index].profile, box=_box(value, size))
                found[index] = replace(found[index], profile=profile)
    uses = [use_of(term) for term in found]
    return tuple(replace(use, mask=pictures.get(index, "")) for index, use in enumerate(uses))


def _box(value: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Shares of the image, or pixels where a number is above 1."""
    from loracomp.fusion.quote import Quote
    from loracomp.fusion.syntax import read_box

    edges = [part.number("edge") for part in value.split(",")]
    if len(edges) != 4 or max(edges) <= 1:
        return read_box(value)
    if 0 in size:
        value.fail("pixels need a --size here; give it, or write shares of the image in 0 … 1")
    if any(edge > side for edge, side in zip(edges, (*size, *size), strict=True)):
        value.fail(f"box {value.value} is outside the image of {size[0]}x{size[1]} pixels")
    shares = [edge / side for edge, side in zip(edges, (*size, *size), strict=True)]
    return read_box(Quote(",".join(map(repr, shares)), value.start, value.label))
