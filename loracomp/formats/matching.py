"""Which base, dialect and layers a file belongs to, told from its tensor table alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from loracomp.bases import BASES
from loracomp.errors import BaseMismatchError, FormatError
from loracomp.formats.algebra import find
from loracomp.formats.families import resemblance
from loracomp.formats.gate import printable
from loracomp.formats.keys import Key, foreign, group, split
from loracomp.formats.names import CUSTOM, Layout, Named, every_name, layout
from loracomp.formats.native import Module, Table
from loracomp.formats.source import Source
from loracomp.formats.tables import MOST, Recent

_HINTS = ("modelspec.architecture", "ss_base_model_version")


@dataclass(frozen=True)
class Found:
    """A module of a file that has a place in the base.

    Attributes:
        name: The module's name in the file.
        keys: Its tensors' names by role.
        algebra: Name of its algebra.
        module: The layers it stands for.
        dialect: Dialect of its name.
        rank: Number by which its alpha is divided.
    """

    name: str
    keys: Mapping[str, str]
    algebra: str
    module: Module
    dialect: str
    rank: int


@dataclass(frozen=True)
class Match:
    """How a file fits a base.

    Attributes:
        place: The base's layout.
        found: Modules that have a place.
        unmatched: Why a tensor has none, by tensor name.
        ignored: Why a tensor without a place does no harm, by tensor name.
        dialect: The commonest dialect of the names.
        style: The commonest way to write the suffixes of tensors, see :mod:`loracomp.formats.keys`.
        scores: Share of the file's modules, in [0, 1], that each base has under name and shape.
        modules: Number of modules in the file.
        resembles: The family that a file looks made for and why, where it does not fit the base whole.
    """

    place: Layout
    found: tuple[Found, ...]
    unmatched: Mapping[str, str]
    ignored: Mapping[str, str]
    dialect: str
    style: str
    scores: Mapping[str, float]
    modules: int
    resembles: str = ""

    @property
    def confidence(self) -> float:
        """How sure the base is, in [0, 1]: the share that fits, less a doubt that halves with each module
        by which it beats the next base (one half where another base fits as well)."""
        mine = self.scores[self.place.base]
        other = max((s for name, s in self.scores.items() if name != self.place.base), default=0.0)
        return mine * (1 - 0.5 ** (1 + (mine - other) * self.modules))


# Whatever fits whole does so by its tensor table; what does not may have its values looked at.
_KNOWN: Recent[Match] = Recent(MOST)


def match(source: Source, base: str | None = None, modules: Table | None = None) -> Match:
    """The base, dialect and layers of a file.

    Args:
        source: The open file.
        base: The base it must be for; None to recognise it.
        modules: A table of layers to use instead of the known bases' (``base`` then names it).

    Raises:
        BaseMismatchError: The file fits another base than the one asked for.
        FormatError: It fits no base at all, or holds no LoRA.
        UnknownNameError: No such base.
    """
    if modules is not None:
        return _match(source, base, modules)
    says = (source.metadata.get(key, "") for key in _HINTS)
    key = (source.header.layout, base, *says)
    found = _KNOWN.get(key)
    if found is None:
        found = _match(source, base, None)
        if not found.unmatched and not found.ignored:
            _KNOWN.put(key, found, len(source.tensors))
    return found


def _match(source: Source, base: str | None, modules: Table | None) -> Match:
    places = _places(base, modules)
    modules_there, unknown = _modules(source)
    if not modules_there:
        raise FormatError(f"{source.label}: {_no_lora(source)}")
    tables = {place.base: every_name(place) for place in places}
    scores = {name: _score(modules_there, table) for name, table in tables.items()}
    best = _choose(scores, source.metadata)
    chosen = places[0].base if base is not None or modules is not None else best
    like = "" if scores[best] == 1 else resemblance((item.name, item.size) for item in modules_there)
    if scores[chosen] < scores[best] or scores[chosen] == 0:
        raise _misfit(source, scores, best, base, modules_there[0].name, like)
    place = next(p for p in places if p.base == chosen)
    return _matched(source, place, tables[chosen], modules_there, unknown, scores, like)


def _places(base: str | None, modules: Table | None) -> list[Layout]:
    """The layouts to try, the one asked for first."""
    if modules is not None:
        return [layout(base or CUSTOM, modules)]
    asked = [layout(base)] if base is not None else []
    return asked + [layout(name) for name in BASES if name != base]


@dataclass(frozen=True)
class _Module:
    """A module of the file: its tensors by role, those its algebra uses, and what their shapes imply."""

    name: str
    keys: Mapping[str, Key]
    algebra: str
    used: frozenset[str]
    size: tuple[int, int] | None
    rank: int

    def fits(self, module: Module) -> bool:
        return self.size == (module.shape[0], prod(module.shape[1:]))


def _modules(source: Source) -> tuple[list[_Module], list[str]]:
    groups, unknown = group(source.tensors)
    there = []
    for name, keys in groups.items():
        algebra, kind, roles = find(frozenset(keys)) or ("", None, frozenset())
        shapes = {role: source.tensors[keys[role].text].shape for role in roles}
        size = kind.size(shapes) if kind else None
        rank = kind.rank(shapes) if kind and size else 0
        there.append(_Module(name, keys, algebra, roles, size, rank))
    return there, unknown


def _no_lora(source: Source) -> str:
    first = printable(next(iter(source.tensors)))
    return f"holds no LoRA tensors (the first is {first!r}); it may be a whole checkpoint, give a LoRA file"


def _score(there: list[_Module], names: Mapping[str, Named]) -> float:
    """Share of the modules that the base has under their name and with their shape."""
    hits = (module.name in names and module.fits(names[module.name].module) for module in there)
    return sum(hits) / len(there)


def _choose(scores: Mapping[str, float], metadata: Mapping[str, str]) -> str:
    """The base with the highest score; ties go to the one that the metadata name, then to the first row."""
    top = max(scores.values())
    tied = [name for name, score in scores.items() if score == top]
    named, version = (metadata.get(key, "") for key in _HINTS)
    architecture = named.split("/")[0]
    for name in tied:
        row = BASES.get(name)
        if row and (architecture == row.architecture or version == row.kohya_version):
            return name
    return tied[0]


def _misfit(
    source: Source, scores: Mapping[str, float], best: str, base: str | None, example: str, like: str
) -> FormatError:
    if base is not None:
        made_for = best if scores[best] > 0 else "an unknown base"
        why = f"{scores[best]:.0%} of its modules fit" if scores[best] > 0 else "no module fits"
        return BaseMismatchError(
            source.label, made_for, base, f"{why}; it looks like {like}" if like else why
        )
    if like:
        return FormatError(
            f"{source.label}: looks made for {like}, which is none of the bases {', '.join(scores)}; "
            "use a LoRA made for one of them"
        )
    return FormatError(
        f"{source.label}: fits none of the bases {', '.join(scores)} "
        f"(it has the module {printable(example)!r}); use a LoRA made for one of them"
    )


def _matched(
    source: Source,
    place: Layout,
    names: Mapping[str, Named],
    there: list[_Module],
    unknown: list[str],
    scores: Mapping[str, float],
    like: str,
) -> Match:
    found: list[Found] = []
    styles: list[str] = []
    taken: dict[str, str] = {}
    unmatched = {text: foreign(text) for text in unknown}
    for module in there:
        named = names.get(module.name)
        reason = _refusal(module, named, place.base) or _second(named, taken)
        if reason or named is None:
            unmatched |= {key.text: reason for key in module.keys.values()}
            continue
        used: dict[str, str] = {}
        for role, key in module.keys.items():
            if role in module.used or role in _BESIDES:
                used[role] = key.text
                styles.append(key.style)
            else:
                unmatched[key.text] = _EXTRA.get(role, f"no part of {module.algebra}")
        dialect = _dialect(named.dialect, module.keys)
        found.append(Found(module.name, used, module.algebra, named.module, dialect, module.rank))
        taken.update(dict.fromkeys((piece.path for piece in named.module.pieces), module.name))
    ignored = {text: "zero, without effect" for text in unmatched if _without_effect(source, text)}
    unmatched = {text: reason for text, reason in unmatched.items() if text not in ignored}
    like = like if unmatched else ""
    dialect, style = _commonest([item.dialect for item in found]), _commonest(styles)
    return Match(place, tuple(found), unmatched, ignored, dialect, style, scores, len(there), like)


def _commonest(names: list[str]) -> str:
    """The name that is there most often, apart from empty ones."""
    return Counter(filter(None, names)).most_common(1)[0][0]


_BESIDES = {"alpha", "magnitude"}
_EXTRA = {
    "bias": "a change of a bias; adapters here change weights only",
    "norm": "a change of a normalisation; adapters here change linear and convolution layers only",
    "norm_bias": "a change of a normalisation; adapters here change linear and convolution layers only",
}


def _without_effect(source: Source, text: str) -> bool:
    """Whether a tensor is an additive change that is zero throughout."""
    key = split(text)
    return key is not None and key.role in _EXTRA and not bool(source.tensor(text).any())


def _refusal(module: _Module, named: Named | None, base: str) -> str:
    roles = sorted(module.keys)
    if not module.algebra and roles[0] in _EXTRA:
        return _EXTRA[roles[0]]
    if named is None:
        return f"no such module in {base}"
    if not module.algebra:
        return f"incomplete: {', '.join(roles)} alone make no update"
    if not module.fits(named.module):
        return f"its shape does not fit {base}'s {named.module.pieces[0].path}"
    return ""


def _second(named: Named | None, taken: Mapping[str, str]) -> str:
    """Why a module is one too many: tools differ in what they make of a layer under two names."""
    twice = next((p.path for p in named.module.pieces if p.path in taken), None) if named else None
    return f"{twice} is there already as {printable(taken[twice])!r}" if twice else ""


def _dialect(name: str, keys: Mapping[str, Key]) -> str:
    old = any(key.style == "old" for key in keys.values())
    return "diffusers-old" if name == "diffusers" and old else name
