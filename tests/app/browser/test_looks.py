"""Every tab: readable to everybody, nothing cut, in light and dark, wide and narrow."""

from __future__ import annotations

from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from webpage import FILLED, Open, go, pick

from loracomp.app.preloads import frontend

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


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (1440, True), (390, False)])
def test_every_tab_is_whole_and_passes_axe(visit: Open, width: int, dark: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(width=width, dark=dark)
    pick(page, "watermelon", "mono")
    page.locator("#picks summary").first.click()
    page.locator("#picks select").first.select_option("fade in")
    for tab in FILLED:
        go(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        assert page.evaluate(WIDER) == [], tab
        assert page.evaluate(CUT) == [], tab
        # Of what axe looks at, only colors differ between light and dark.
        found = axe.run(page, options={"runOnly": ["color-contrast"]} if dark else None)
        bad = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
        told = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in bad]
        assert not told, (tab, told)


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


def test_the_head_names_the_scripts_that_a_page_will_ask_for(visit: Open) -> None:
    page = visit()
    found = "performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)"
    asked = {path for path in page.evaluate(found) if path.startswith("/assets/") and path.endswith(".js")}
    links = "[...document.head.querySelectorAll('link[rel=modulepreload]')].map((one) => one.href)"
    named = {f"/assets/{address.rpartition('/')[2]}" for address in page.evaluate(links)}
    assert len(asked - named) < len(asked) / 4


def test_scripts_come_unpacked_and_only_to_those_who_may(server: Any) -> None:
    folder = frontend()
    assert folder is not None
    script = next((folder / "assets").glob("index-*.js"))
    address = f"{server.address}/assets/{script.name}"
    with urlopen(Request(address, headers={"Accept-Encoding": "gzip, br"}), timeout=60) as answer:
        assert answer.read() == script.read_bytes()
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "immutable" in answer.headers["Cache-Control"]
    with pytest.raises(HTTPError, match="421"):
        urlopen(Request(address, headers={"Host": "evil.example"}), timeout=60)
