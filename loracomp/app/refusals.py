"""What the app refuses, and how errors are told without telling where things lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loracomp.errors import LoracompError, UsageError

# Two separators at least: "and/or" and dates are no paths.
_PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`:;,()]+){2,}[/\\]?")


class NotFoundError(LoracompError):
    """An id that is none, or that belongs to somebody else; nobody is told which."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"no such {kind}; it may have been removed")


class LimitError(UsageError):
    """More than a user may ask for at once."""


class TooLargeError(UsageError):
    """More bytes than are taken."""


class StoppedError(LoracompError):
    """A job was told to end: ``cause`` is ``cancel``, ``stop`` or ``quit`` (the app ends).

    ``result`` is what it has to show until then.
    """

    def __init__(self, cause: str, result: Mapping[str, Any] | None = None) -> None:
        self.cause, self.result = cause, dict(result or {})
        super().__init__(f"ended by {cause}")


def public(error: BaseException | str) -> str:
    """An error as one line in which every path is cut down to its last part."""
    line = " ".join(str(error).split())
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], line)
