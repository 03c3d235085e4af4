"""The registry of merge methods: each is a function of one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from loracomp.errors import UsageError
from loracomp.fusion.offline.rank import RankRule
from loracomp.lowrank import LowRank
from loracomp.registry import Registry

Layer = Callable[..., LowRank]
"""(:class:`Site`, :class:`RankRule`, keyword options) to the merged update, alpha None."""


@dataclass(frozen=True)
class Merger:
    """A merge method.

    Attributes:
        layer: The merged update of one layer.
        averages: Whether weights are counts that are divided by their sum.
        exact: Whether it gives the weighted sum itself where no rank is asked for, so that factors are
            written in float32 unless told otherwise.
        stacks: Whether the result is the parents' factors side by side: rank Σ rᵢ, known beforehand.
    """

    layer: Layer
    averages: bool = False
    exact: bool = False
    stacks: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options and their defaults."""
        parameters = signature(self.layer).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raises :class:`UsageError` for an option that the method does not have, or of another type."""
        known = self.options
        for key, value in options.items():
            if key not in known:
                has = ", ".join(f"{k}={v}" for k, v in known.items()) or "none"
                raise UsageError(f"{name} has no option {key!r}; its options: {has}")
            default = known[key]
            switch = isinstance(default, bool) or default is None
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (isinstance(value, bool) if switch else number):
                kind = "true or false" if switch else "a number"
                raise UsageError(f"{name}: option {key}={value!r} must be {kind}")


MERGES: Registry[Merger] = Registry("merge method", group="loracomp.merges")


def merge_method(
    name: str, *, summary: str, paper: str = "", averages: bool = False, exact: bool = False,
    stacks: bool = False,
) -> Callable[[Layer], Layer]:  # fmt: skip
    """Decorator that files a function of one layer in :data:`MERGES`; see :class:`Merger`."""

    def add(layer: Layer) -> Layer:
        MERGES.register(name, summary=summary, paper=paper)(Merger(layer, averages, exact, stacks))
        return layer

    return add


def no_rank(name: str, rule: RankRule) -> None:
    """Raises :class:`UsageError` where a rank is asked of a method that keeps all."""
    if rule.kind != "default":
        raise UsageError(f"{name} keeps every rank; leave out --rank, or take --method svd")
