"""Every tab: readable to everybody, nothing cut, in light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Open = Callable[..., Any]
TABS = ("Compose", "Compare", "History", "Train", "Watermark", "Library", "Jobs")
WIDER = """() => [...document.querySelectorAll('main *')].filter(node => {
  const box = node.getBoundingClientRect();
  const scrolls = node.closest('.lc-strip, .lc-table, .lc-grid, .tab-wrapper, .tab-container, .lc-hidden');
  return box.width && box.height && !scrolls && (box.right > innerWidth + 1 || box.left < -1);
}).map(node => node.outerHTML.slice(0, 120))"""
CUT = """() => [...document.querySelectorAll('main button, main label, main h1, main h2')].filter(node => {
  const style = getComputedStyle(node);
  const shown = node.offsetParent && node.clientWidth && style.textOverflow !== 'ellipsis';
  return shown && !node.closest('.lc-hidden, .label-wrap') && style.display !== 'inline'
    && node.scrollWidth > node.clientWidth + 2;
}).map(node => node.innerText.slice(0, 60))"""


def go(page: Any, tab: str) -> None:
    """Opens a tab, also one that a narrow screen keeps behind the dots."""
    if tab == "Compose":
        return
    found = page.get_by_role("tab", name=tab, exact=True)
    if not found.is_visible():
        page.locator(".overflow-menu > button").first.click()
        found = page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
    found.click()
    page.wait_for_timeout(700)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_tab_passes_axe(visit: Open, dark: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(dark=dark)
    for name in ("watermelon", "mono"):
        page.locator("#shelf").get_by_role("button", name=f"{name},").click()
    page.locator("#picks .lc-pick").nth(1).wait_for()
    page.locator("#picks summary").first.click()
    page.locator("#picks select").first.select_option("fade in")
    for tab in TABS:
        go(page, tab)
        found = axe.run(page).response["violations"]
        bad = [one for one in found if one["impact"] in ("serious", "critical")]
        told = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in bad]
        assert not told, (tab, told)


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_cut_and_nothing_leaves_the_screen(visit: Open, width: int) -> None:
    page = visit(width=width)
    page.locator("#shelf").get_by_role("button", name="violin,").click()
    page.locator("#picks .lc-pick").first.wait_for()
    for tab in TABS:
        go(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        assert page.evaluate(WIDER) == [], tab
        assert page.evaluate(CUT) == [], tab


def test_the_keyboard_is_enough_for_a_picture(visit: Open) -> None:
    page = visit()
    page.locator("#find input, #find textarea").first.focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.act") == "pick":
            break
    page.keyboard.press("Enter")
    page.locator("#picks .lc-pick").first.wait_for()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "generate":
            break
    assert page.evaluate("document.activeElement.id") == "generate"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_a_chosen_mode_stays(visit: Open) -> None:
    page = visit()
    assert not page.evaluate("document.body.classList.contains('dark')")
    page.get_by_role("button", name="Light or dark").click()
    page.reload()
    page.locator("#shelf [data-act=pick]").first.wait_for()
    page.wait_for_function("document.body.classList.contains('dark')")
