"""Who asks, and how an error reaches the place where the person looks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from loracomp.app.refusals import public
from loracomp.app.requests import GenerateRequest
from loracomp.app.settings import LOCAL
from loracomp.app.ui.markup import Markup, notice
from loracomp.errors import LoracompError, UsageError

log = logging.getLogger("loracomp.app")


def user_of(request: Any) -> str:
    """The user behind a Gradio request; the one local user where nobody signs in."""
    return getattr(request, "username", None) or LOCAL


def asked(values: dict[str, Any]) -> GenerateRequest:
    """The request of the form, checked; raises :class:`UsageError` that names the field."""
    from pydantic import ValidationError

    try:
        return GenerateRequest.model_validate(values)
    except ValidationError as error:
        raise mistaken(error) from None


def mistaken(error: Any) -> UsageError:
    """The first thing that pydantic found wrong, in a line."""
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    words = str(first["msg"]).removeprefix("Value error, ")
    return UsageError(f"{where}: {words}" if where else words)


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
