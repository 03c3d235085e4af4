"""What ``--auto`` means: adapters from an index, chosen for a prompt and explained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from loracomp.bases import BASES
from loracomp.cli.index import opened, searching
from loracomp.errors import LoracompError, UsageError

if TYPE_CHECKING:
    from loracomp.retrieval.auto import Choice


class NothingHelpsError(LoracompError):
    """No adapter stands out, and composing on the base alone was not wanted."""

    exit_code = 1


def chosen(
    prompt: str,
    loras: list[str],
    index: Path,
    base: str,
    *,
    strict: bool = False,
    server: str | None = None,
    quiet: bool = False,
) -> tuple[str, list[str], str | None, dict[str, Any]]:
    """Prompt, adapters and method that an index has for a prompt; says on stderr what and why.

    Args:
        prompt: What to draw.
        loras: Adapters that the user named, which does not go together with a choice.
        index: Folder of the index.
        base: Base to draw with.
        strict: Whether to refuse where nothing helps.
        server: Address of the server that holds the index.
        quiet: Whether to say nothing.

    Returns:
        Prompt with trigger words, ``FILE:WEIGHT`` of each adapter, the method (None for no adapter), and
        the whole choice as JSON values.

    Raises:
        NothingHelpsError: ``strict`` and no adapter helps.
        UsageError: Adapters were named as well, or there is no prompt.
    """
    from loracomp.library import open_adapter
    from loracomp.retrieval.auto import choose

    if loras or "<lora:" in prompt:
        raise UsageError("--auto chooses the adapters; leave out --lora, or leave out --auto")
    if not prompt.strip():
        raise UsageError("--auto needs a prompt to choose by; say what to draw")
    with opened(index, server) as collection:
        known = base if base in BASES else None
        searcher = searching(collection, known, None)
        choice = choose(prompt, searcher, lambda path: open_adapter(path, known), base=known)
    if not choice.adapters and strict:
        why = "; ".join(f"{span!r}: {reason}" for span, reason in choice.left.items())
        raise NothingHelpsError(f"no adapter in {index} helps with {prompt!r} ({why})")
    if not quiet:
        _say(choice)
    uses = [f"{adapter.path}:{adapter.weight:g}" for adapter in choice.adapters]
    return choice.prompt, uses, choice.method or None, choice.to_dict()


def _say(choice: Choice) -> None:
    for line in choice.lines():
        typer.echo(f"auto: {line}", err=True)
