"""Prompt and picks survive a reload: the browser keeps them, nothing of it is stored here."""

from __future__ import annotations

from typing import Any

import gradio as gr

from loracomp.app.refusals import NotFoundError
from loracomp.app.ui.compose import Compose
from loracomp.app.ui.mixing import no_picks
from loracomp.app.ui.picks import checked, pick
from loracomp.errors import UsageError

_FIELDS = ("weight", "points")


def connect(app: Any, made: Compose, blocks: Any) -> None:
    """Keeps what changes, and brings it back when the page is opened."""
    form = made.form
    # The browser reads it anyway: the secret keeps nothing from anybody, it keeps the entry valid.
    kept = gr.BrowserState(None, storage_key="loracomp-compose", secret="loracomp")

    def keep(prompt: str, picks: Any) -> dict[str, Any]:
        try:
            entries = checked(picks)
        except UsageError:
            entries = []
        return {
            "prompt": prompt,
            "picks": [{name: one.get(name) for name in ("id", *_FIELDS)} for one in entries],
        }

    def bring(held: Any, prompt: str, picks: Any) -> tuple[Any, ...]:
        if not isinstance(held, dict) or prompt or picks:
            return gr.skip(), gr.skip(), gr.skip()
        found = []
        for entry in held.get("picks") or []:
            try:
                found.append(
                    pick(app.library.get(str(entry["id"]))) | {name: entry[name] for name in _FIELDS}
                )
            except (NotFoundError, KeyError, TypeError):
                continue
        return str(held.get("prompt") or ""), found, no_picks(found)

    blocks.load(
        bring, [kept, form.prompt, form.picks], [form.prompt, form.picks, made.none], show_progress="hidden"
    )
    for part in (form.prompt, form.picks):
        part.change(keep, [form.prompt, form.picks], kept, show_progress="hidden", trigger_mode="always_last")
