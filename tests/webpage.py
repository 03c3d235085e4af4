"""What a person does on the page, as steps of browser tests: each waits for what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_MS = 90_000
Open = Callable[..., Any]
Ask = Callable[..., Any]


def until(holds: Callable[[], Any]) -> Any:
    """Waits for what the page or the app does behind the eye, and gives it."""
    last = time.monotonic() + PATIENCE_MS / 1000
    while not (found := holds()):
        assert time.monotonic() < last
        time.sleep(0.1)
    return found


def newest(asked: Ask) -> dict[str, Any]:
    """The picture that was drawn last."""
    found: dict[str, Any] = asked("/history")["rows"][0]
    return found


def tile(page: Any, name: str) -> Any:
    """The adapter's tile in the gallery."""
    return page.locator("#shelf").get_by_role("button", name=f"{name},")


def names(page: Any, place: str = "#shelf") -> list[str]:
    """What the tiles of a gallery are called, in order."""
    found: list[str] = page.locator(f"{place} .lc-tile .lc-name").all_inner_texts()
    return found


def pick(page: Any, *adapters: str) -> None:
    """Picks adapters by looking."""
    for number, name in enumerate(adapters):
        tile(page, name).click()
        page.locator("#picks .lc-pick").nth(number).wait_for()


def enter(fields: dict[Any, str]) -> None:
    """Types into fields, each as soon as it can be written in."""
    for field, text in fields.items():
        field.fill(text)


def settings(page: Any, steps: int, seed: int | None = None) -> None:
    """Few steps, and a seed that stays."""
    page.locator("#settings button").first.click()
    page.get_by_label("Height").wait_for()
    if seed is not None:
        page.get_by_label("Keep this seed").check()
        enter({page.get_by_label("Seed", exact=True): str(seed)})
    enter({page.get_by_label("Steps"): str(steps)})


def drawn(page: Any) -> Any:
    """Waits for the picture of Compose."""
    page.locator("#stage [data-state=done] img").first.wait_for()
    return page.locator("#stage img").first


def choose(page: Any, label: str, option: str) -> None:
    """Chooses in one of Gradio's lists."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option).first.click()


FILLED = {
    "Compose": "#shelf [data-act=pick]",
    "Compare": "#grid-draw",
    "History": "#history-gallery :is(.lc-tile, .lc-empty)",
    "Watermark": "#keys :is(.lc-empty, li, tr)",
    "Library": "#library-gallery .lc-tile",
    "Jobs": "#jobs-list :is(table, .lc-empty)",
    "Train": "#presets p",
}
"""By tab, what is there when the tab is; the last one is not whole before the model is open."""


def go(page: Any, tab: str) -> None:
    """Opens a tab, also one that a narrow screen keeps behind the dots."""
    found = page.get_by_role("tab", name=tab, exact=True)
    if not found.is_visible():
        page.locator(".overflow-menu > button").first.click()
        found = page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
    found.click()
    page.locator(FILLED[tab]).first.wait_for(state="attached")
