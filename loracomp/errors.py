"""Everything loracomp raises on purpose.

LoracompError                    exit code
├── UsageError                   2   the request cannot be understood
│   └── UnknownNameError         2   no such adapter, method or base; near names are suggested
├── FormatError                  4   a file is damaged, unsafe or not what it claims
│   ├── BaseMismatchError        4   an adapter was made for another base model
│   └── PartialLoadError         4   some tensors of a file have no place to go
├── TrainingError                4   the data or a checkpoint cannot be trained from
│   ├── InterruptedRunError      130 a training run was stopped after saving (training.interrupt)
│   └── InterruptedManyError     130 a run of many adapters was stopped after saving (training.interrupt)
├── InterruptedByUserError       130 Ctrl-C where nothing had to be saved (cli)
└── ResourceError                5   a model, package or calibration is missing

Messages are one line: what is wrong with which file, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LoracompError(Exception):
    """Root of the tree; ``exit_code`` is what the command line returns."""

    exit_code = 2


class UsageError(LoracompError):
    """The request itself is wrong (a weight that is no number, an output that cannot be written)."""


class UnknownNameError(UsageError, KeyError):
    """A name that nothing is registered or shipped under."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        self.message = f"unknown {kind} {name!r}; {hint}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class FormatError(LoracompError):
    """A file is damaged, unsafe or not what it claims to be."""

    exit_code = 4


class BaseMismatchError(FormatError):
    """An adapter was made for another base model than the one at hand."""

    def __init__(self, adapter: str, made_for: str, used_with: str, why: str = "") -> None:
        detail = f" ({why})" if why else ""
        super().__init__(
            f"{adapter}: made for {made_for}, but the base is {used_with}{detail}; "
            f"choose a base of the kind {made_for} or another adapter"
        )


class PartialLoadError(FormatError):
    """Some tensors of a file have no place in the base model."""


class TrainingError(LoracompError):
    """Training data or a checkpoint that cannot be used."""

    exit_code = 4


class ResourceError(LoracompError):
    """A model, an optional package or a calibration is missing."""

    exit_code = 5
