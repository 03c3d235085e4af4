"""Who asks, and how an error reaches the place where the person looks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from loracomp.app.refusals import public
from loracomp.app.requests import GenerateRequest
from loracomp.app.settings import LOCAL
from loracomp.app.ui.markup import Markup, notice
from loracomp.errors import LoracompError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

log = logging.getLogger("loracomp.app")


def user_of(request: Any) -> str:
    """The user behind a Gradio request; the one local user where nobody signs in."""
    return getattr(request, "username", None) or LOCAL


T = TypeVar("T", bound="BaseModel")


def asked(values: dict[str, Any]) -> GenerateRequest:
    """The request of the form, checked; raises :class:`UsageError` that names the field."""
    return checked_request(GenerateRequest, values)


def checked_request(kind: type[T], values: dict[str, Any], hints: Mapping[str, str] | None = None) -> T:
    """A request of some kind, checked.

    Args:
        kind: Its class.
        values: Its fields.
        hints: By field, what to say instead of pydantic's words.

    Raises:
        UsageError: The first thing that is wrong, in a line.
    """
    from pydantic import ValidationError

    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"])
        words = (hints or {}).get(where) or str(first["msg"]).removeprefix("Value error, ")
        raise UsageError(words if not where or where in (hints or {}) else f"{where}: {words}") from None


def told(error: BaseException) -> Markup:
    """An error as a notice: a user's mistake in its own words, anything else without its insides."""
    if isinstance(error, LoracompError):
        return notice(public(error), "error")
    log.exception("an action of the page failed", exc_info=error)
    return notice("something went wrong inside; the app's log says what", "error")


def telling(count: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a handler with ``count`` outputs, the last of them a notice, tell its errors there.

    The handler returns all its outputs; where it raises, the others stay as they are.
    """

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def run(*values: Any) -> Any:
            import gradio as gr

            try:
                return handler(*values)
            except Exception as error:
                shown = told(error)
                return shown if count == 1 else (*(gr.skip() for _ in range(count - 1)), shown)

        return run

    return wrap
