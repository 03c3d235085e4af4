"""One adapter of a composition in a few characters, as users type it after ``--lora`` and in prompts.

    NAME[:STRENGTH][:SETTING=VALUE]…

    style:0.8                           one strength throughout
    style:0@0..0.3,1@0.3..1             from … to, in shares of the run; 0 where nothing is said
    style@0.3..1                        as style:1@0.3..1
    style:0@0,1@0.5                     points, with straight lines between them
    style:1@step=5..10                  steps counted from 0; sigma=0.5..3 are noise levels
    style:0.8:down=0.5:up.1=0           factors of blocks (loracomp.fusion.blocks)
    style:1:text=0.5:uncond=0:rank=8    in the text encoders, the unconditional half, leading ranks
    style:1:box=0,0,0.5,1               where in the image: left, top, right, bottom in shares

What tags of other programs say is read as they mean it: ``name:te:unet:dyn`` and ``te= unet= dyn=`` of A1111,
``lbw= start= stop= step=`` of the LoRA Block Weight extension (its steps begin at 1), points of loractl.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from loracomp.fusion.blockweights import PRESETS
from loracomp.fusion.curves import Curve
from loracomp.fusion.program import Profile
from loracomp.fusion.quote import Quote
from loracomp.fusion.strengths import Strength, read_strength, spelled

_TAG = re.compile(r"<lora:([^<>]*)>")
_RANGE = re.compile(r"@(?:step=|sigma=)?[\d.]*\.\.[\d.]*$")
_BLOCK = re.compile(r"(\*|down|up|mid|block|single|text|unet|transformer|text_encoder\w*)(\.\w+)*")
_NAMED = ("text", "uncond", "rank", "box", "te", "unet", "dyn", "lbw", "start", "stop", "step")


@dataclass(frozen=True)
class Term:
    """One adapter with its strength and all that modifies it.

    Attributes:
        source: Shipped name or file.
        weight: The largest strength, by size, that it reaches.
        profile: What modifies that.
        lbw: Name or list of the LoRA Block Weight extension, turned into blocks by :func:`resolved`.
        silent: Acts in the text encoders alone (``unet=0``).
    """

    source: str
    weight: float = 1.0
    profile: Profile = field(default_factory=Profile)
    lbw: str = ""
    silent: bool = False

    @property
    def settings(self) -> str:
        """All behind the source, in the short syntax."""
        profile = self.profile
        parts = [str(Strength.of(self.weight, profile.curve))]
        parts += ["unet=0"] if self.silent else []
        parts += [f"{name}={spelled(value)}" for name, value in profile.blocks.items()]
        parts += [f"text={spelled(profile.text)}"] if profile.text != 1 else []
        parts += [f"uncond={spelled(profile.unconditional)}"] if profile.unconditional != 1 else []
        parts += [f"rank={profile.ranks}"] if profile.ranks else []
        parts += [f"box={','.join(map(spelled, profile.box))}"] if profile.box else []
        parts += [f"lbw={self.lbw}"] if self.lbw else []
        return ":".join(parts)

    def __str__(self) -> str:
        return f"{self.source}:{self.settings}"


def parse_term(text: str, option: str = "--lora") -> Term:
    """What ``--lora`` holds; ``option`` is what messages call it.

    A colon or an @ belongs to the name where a file exists with it, and where a slash follows.

    Raises:
        UsageError: It cannot be understood; the message says where.
    """
    label = f"{option} {text}" if option else text
    whole = Quote(text, 0, label)
    if _is_file(text):
        return Term(text)
    end = _source_end(text)
    if end == 0:
        whole.fail("no adapter before the strength; write NAME:0.8")
    rest = text[end:]
    if not rest:
        return Term(text)
    start = end + (rest[:1] == ":")
    return _read(text[:end], Quote(text[start:], start, label))


def parse_settings(source: str, settings: str) -> Term:
    """The term of a source with what :attr:`Term.settings` gave."""
    return _read(source, Quote(settings, 0, f"{source}:{settings}")) if settings else Term(source)


def split_prompt(prompt: str) -> tuple[str, tuple[Term, ...]]:
    """The prompt without its ``<lora:…>`` tags, and the adapters that they name.

    Raises:
        UsageError: A tag that cannot be understood.
    """
    terms = []
    for tag in _TAG.finditer(prompt):
        name, rest = Quote(tag[1], len("<lora:"), tag[0]).cut(":")
        if not name.value.strip():
            name.fail("no adapter in the tag; write <lora:NAME:0.8>")
        terms.append(_read(name.value.strip(), rest) if rest else Term(name.value.strip()))
    return " ".join(_TAG.sub("", prompt).split()), tuple(terms)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:
        # Longer than any name of a file.
        return False


def _source_end(text: str) -> int:
    """Length of the name at the beginning of a term."""
    for index, mark in enumerate(text):
        if mark == ":" and not set("/\\") & set(text[index + 1 :]):
            return index
    found = _RANGE.search(text)
    return found.start() if found else len(text)


def _read(source: str, rest: Quote) -> Term:
    positional, named = _fields(rest)
    strengths = [read_strength(quote) for quote in positional[:2]]
    if len(strengths) == 2 and (twice := next((key for key in ("te", "unet") if key in named), "")):
        named[twice].fail(f"{twice} is set twice, by its place and by its name")
    if "te" in named:
        strengths = [read_strength(named["te"]), *strengths]
    if "unet" in named:
        first = strengths[:1] or [Strength.constant(1.0)]
        strengths = [*first, read_strength(named["unet"])]
    term = _strong(source, strengths, rest)
    if len(positional) == 3:
        named.setdefault("rank", positional[2])
    return _modified(term, named, rest)


def _fields(rest: Quote) -> tuple[list[Quote], dict[str, Quote]]:
    """Positional fields (strengths, ranks) and named ones."""
    positional: list[Quote] = []
    named: dict[str, Quote] = {}
    for part in rest.split(":"):
        key, value = part.cut("=")
        if value is None or "@" in key.value:
            old = part.value in PRESETS or (part.value.count(",") > 9 and "@" not in part.value)
            if old:
                named["lbw"] = part
            elif named or len(positional) == 3:
                part.fail(f"{part.value!r} has no place here; write SETTING=VALUE")
            else:
                positional.append(part)
        elif key.value in named:
            key.fail(f"{key.value} is set twice")
        else:
            named[_known(key)] = value
    return positional, named


def _known(key: Quote) -> str:
    name = key.value.strip()
    if name not in _NAMED and not _BLOCK.fullmatch(name):
        near = get_close_matches(name, [*_NAMED, "down", "up", "mid", "block", "single"], 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_NAMED)} and names of blocks"
        key.fail(f"no setting {name!r}; {hint}")
    return {"dyn": "rank"}.get(name, name)


def _strong(source: str, strengths: list[Strength], rest: Quote) -> Term:
    """The term with its weight and curve, and the text encoders' strength where it is another one."""
    if not strengths:
        return Term(source)
    text, denoiser = strengths[0], strengths[-1]
    weight, curve = denoiser.split()
    if len(strengths) == 1:
        return Term(source, weight, Profile(curve))
    if text.shaped:
        rest.fail("the text encoders run once, before the first step; give them one strength")
    said = text.split()[0]
    if weight == 0 != said:
        return Term(source, said, silent=True)
    return Term(source, weight, Profile(curve, text=said / weight if weight else 1.0))


def _modified(term: Term, named: Mapping[str, Quote], rest: Quote) -> Term:
    profile = term.profile
    window = {key: named[key] for key in ("start", "stop", "step") if key in named}
    if window:
        if profile.curve is not None:
            rest.fail(f"a curve and {next(iter(window))}= at once; give one of them")
        curve = _window(window)
        if curve is None:
            term = replace(term, weight=0.0)
        profile = replace(profile, curve=curve)
    if "text" in named:
        profile = replace(profile, text=named["text"].number("text"))
    if "uncond" in named:
        profile = replace(profile, unconditional=named["uncond"].number("uncond"))
    if "rank" in named:
        rank = named["rank"].number("rank")
        if rank < 1 or rank % 1:
            named["rank"].fail(f"rank {named['rank'].value!r} is not a whole number from 1 on")
        profile = replace(profile, ranks=int(rank))
    if "box" in named:
        profile = replace(profile, box=read_box(named["box"]))
    blocks = {key: quote.number(key) for key, quote in named.items() if key not in _NAMED}
    lbw = named["lbw"].value.strip() if "lbw" in named else ""
    return replace(term, profile=replace(profile, blocks=blocks), lbw=lbw)


def _window(named: Mapping[str, Quote]) -> Curve | None:
    """When the LoRA Block Weight extension has an adapter on: from step ``start`` to before step ``stop``.

    It counts steps from 1; numbers between 0 and 1 are shares of the run. None stands for never.
    """
    parts = dict(named)
    if "step" in parts:
        start, stop = parts["step"].cut("-")
        if stop is None:
            parts["step"].fail(f"step={start.value}; write step=5-10")
        parts = {"start": start, "stop": stop}
    values = {key: quote.number(key) for key, quote in parts.items()}
    shares = {key for key, value in values.items() if 0 < value < 1}
    if shares and any(value >= 1 for value in values.values()):
        next(iter(parts.values())).fail("start and stop have to be both steps or both shares of the run")
    if not shares:
        values = {key: max(0.0, value - 1) for key, value in values.items()}
    start_at, stop_at = values.get("start", 0.0), values.get("stop", math.inf)
    if stop_at <= start_at:
        return None
    points = [(0.0, 0.0), (start_at, 1.0)] if start_at > 0 else [(0.0, 1.0)]
    points += [(stop_at, 0.0)] if math.isfinite(stop_at) else []
    return Curve(tuple(points), "run" if shares else "step")


def read_box(quote: Quote) -> tuple[float, float, float, float]:
    """``left,top,right,bottom`` in shares of the image."""
    parts = quote.split(",")
    if len(parts) != 4:
        quote.fail(f"box {quote.value!r} is not LEFT,TOP,RIGHT,BOTTOM")
    left, top, right, bottom = (part.number("edge") for part in parts)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        quote.fail(f"box {quote.value!r} needs left < right and top < bottom, all within 0 and 1")
    return left, top, right, bottom
