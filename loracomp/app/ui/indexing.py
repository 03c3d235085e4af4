"""The wait for the index of what weights do, which is built when somebody first asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from loracomp.app.ui.markup import Markup, notice

_POLL_S = 0.4


async def indexed(app: Any, needed: bool) -> AsyncIterator[Markup]:
    """Has the index built where it is needed and missing, and says how far it is until it can be asked."""
    if needed and not app.finding.built:
        app.finding.wanted()
    while needed and app.jobs.any_live("index"):
        done, total = app.finding.progress or (0, 0)
        far = f": {done} of {total}" if total else ""
        yield notice(f"Reading what the adapters do, which takes a moment the first time{far}")
        await asyncio.sleep(_POLL_S)
    yield Markup("")
