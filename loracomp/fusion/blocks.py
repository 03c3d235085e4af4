"""Names for the parts of a denoiser, read off its module paths.

A layer answers to the module paths above it (``unet.down_blocks.1``), and to short names: ``down.1.0``
(the first pair of resnet and attention of down block 1), ``down.1.sampler``, ``down.1``, ``down``, ``mid``,
``up.…`` in a UNet; ``block.7``, ``block``, ``single.3``, ``single`` in a transformer; ``text`` in the text
encoders; ``*`` everywhere. The most specific name that a mapping has decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

ANY = "*"
_RULES = (
    (re.compile(r"unet\.(down|up)_blocks\.(\d+)\.(?:attentions|resnets)\.(\d+)"), "{}.{}.{}"),
    (re.compile(r"unet\.(down|up)_blocks\.(\d+)\.(?:down|up)(sampler)s"), "{}.{}.{}"),
    (re.compile(r"unet\.(mid)_block"), "{}"),
    (re.compile(r"transformer\.transformer_(block)s\.(\d+)"), "{}.{}"),
    (re.compile(r"transformer\.(single)_transformer_blocks\.(\d+)"), "{}.{}"),
    (re.compile(r"(text)_encoder"), "{}"),
)


def _prefixes(path: str) -> list[str]:
    """The dotted path and all above it, longest first."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


@lru_cache(maxsize=16384)
def names(path: str) -> tuple[str, ...]:
    """All names of a layer, the most specific first."""
    short: list[str] = []
    for rule, form in _RULES:
        if match := rule.match(path):
            short = _prefixes(form.format(*match.groups()))
            break
    return (*_prefixes(path), *short, ANY)


def lookup(path: str, values: Mapping[str, T]) -> T | None:
    """The value of the layer's most specific name that ``values`` has; None where it has none."""
    return next((values[name] for name in names(path) if name in values), None)


def known(paths: Iterable[str]) -> set[str]:
    """Every name that some layer answers to."""
    return {name for path in paths for name in names(path)}


def short(paths: Iterable[str]) -> list[str]:
    """The short names alone, sorted: what a message lists."""
    found = {name for path in paths for name in names(path)[path.count(".") + 1 : -1]}
    return sorted(found, key=lambda name: [(part.isdigit(), part.zfill(4)) for part in name.split(".")])
