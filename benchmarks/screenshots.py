"""Pictures of every tab for the documentation: ``python -m benchmarks.screenshots [--out docs/app]``.

Starts an app in a temporary folder, uses it as a person would, and saves each tab, light and dark, wide and
narrow. Needs a Chromium on the path and the ``dev`` extra; takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABS = ("Compose", "Compare", "History", "Train", "Watermark", "Library", "Jobs")
WIDTHS = {1440: 900, 390: 844}
PATIENCE_MS = 180_000
COLORS = (64, 32, 16)
LARGEST = 118_000


def main() -> None:
    """Saves all pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "app")
    parser.add_argument("--tabs", nargs="*", default=TABS)
    parser.add_argument("--widths", nargs="*", type=int, default=list(WIDTHS))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        process, address = start(Path(folder))
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            prepare(browser.new_page(viewport={"width": 1440, "height": 900}), address)
            for width in chosen.widths:
                for mode in ("light", "dark"):
                    size: Any = {"width": width, "height": WIDTHS[width]}
                    page = browser.new_context(viewport=size, color_scheme=mode).new_page()
                    take(page, address, chosen.out, f"{mode}-{width}", chosen.tabs)
                    page.context.close()
        finally:
            browser.close()
            process.terminate()
            process.wait()


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """An app with pictures to train on, and its address once it answers."""
    (folder / "library").mkdir()
    shutil.copytree(ROOT / "examples" / "styles" / "mono", folder / "pictures" / "drawings")
    command = [
        sys.executable, "-u", "-m", "loracomp", "app", "--port", "0", "--data", str(folder / "data"),
        "--library", str(folder / "library"), "--pictures", str(folder / "pictures"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.search(r"http://\S+", said)
    if found is None:
        raise SystemExit(f"the app did not start: {said}")
    for _ in range(600):
        try:
            urllib.request.urlopen(found[0], timeout=10).close()
            break
        except OSError:
            time.sleep(0.1)
    return process, found[0]


def prepare(page: Any, address: str) -> None:
    """Some pictures, a grid, a recipe, a key and a short run, so that tabs show what they are for."""
    page.set_default_timeout(PATIENCE_MS)
    for names in (("watermelon", "mono"), ("violin",), ("bicycle", "blobs")):
        begin(page, address, names)
        page.locator("#generate").click()
        page.locator("#stage [data-state=done] img").first.wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.locator("#grid-draw").click()
    page.locator("#grid [data-state=done]").wait_for()
    page.get_by_role("tab", name="History").click()
    page.locator("#recipe-name input, #recipe-name textarea").first.fill("Bicycles in blobs")
    page.locator("#recipe-save").click()
    page.get_by_text("Saved Bicycles").wait_for()
    page.get_by_role("tab", name="Watermark").click()
    page.get_by_label("Key for the LoRA").fill("my-ink")
    page.locator("#key-issue").click()
    page.get_by_text("The key of my-ink").wait_for()
    train(page)


def train(page: Any) -> None:
    """A run of a few steps."""
    page.get_by_role("tab", name="Train").click()
    page.get_by_label("Training data", exact=True).click()
    page.get_by_role("option", name="drawings").first.click()
    page.locator("#captions li").first.wait_for()
    page.locator("#train-name input, #train-name textarea").first.fill("my-ink")
    page.get_by_label("Trigger words").fill("ink style")
    page.locator("#train-settings button").first.click()
    page.locator("#train-steps input").fill("24")
    page.get_by_label("Batch").fill("4")
    page.get_by_label("Sample prompts").fill("a duck emoji, ink style")
    page.get_by_label("Samples per prompt").fill("1")
    page.locator("#train-start").click()
    page.get_by_text("my-ink is in the library").wait_for()


def begin(page: Any, address: str, names: tuple[str, ...]) -> None:
    """A fresh page with adapters picked."""
    page.goto(address)
    for number, name in enumerate(names):
        page.locator("#shelf").get_by_role("button", name=f"{name},").click()
        page.locator("#picks .lc-pick").nth(number).wait_for()


def take(page: Any, address: str, out: Path, ending: str, tabs: tuple[str, ...]) -> None:
    """Every tab as one picture."""
    page.set_default_timeout(PATIENCE_MS)
    begin(page, address, ("watermelon", "mono"))
    for tab in tabs:
        show(page, tab)
        page.wait_for_timeout(1200)
        raw = page.screenshot(full_page=True)
        save(raw, out / f"{tab.lower()}-{ending}.webp")


def show(page: Any, tab: str) -> None:
    """Opens a tab, on a narrow screen by the menu, and fills it as far as one press does."""
    if tab == "Compose":
        page.locator("#picks summary").first.click()
        page.locator("#picks select").first.select_option("fade in")
        page.locator("#generate").click()
        page.locator("#stage [data-state=done] img").first.wait_for()
        return
    found = page.get_by_role("tab", name=tab, exact=True)
    if not found.is_visible():
        page.locator(".overflow-menu > button").first.click()
        found = page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
    found.click()
    if tab == "Compare":
        page.get_by_label("Values, columns").fill("0, 1")
        page.locator("#grid-draw").click()
        page.locator("#grid .lc-cell").nth(1).click()
        page.locator("#pair img").first.wait_for()
    elif tab == "History":
        page.locator("#history-gallery .lc-tile").last.click()
        page.get_by_role("button", name="Restore settings").wait_for()
    elif tab == "Library":
        page.locator("#library-gallery .lc-tile").first.click()
        page.get_by_text("The doctor:").first.wait_for()


def save(raw: bytes, path: Path) -> None:
    """A small picture: few colors are enough for a page, fewer for a long one."""
    from PIL import Image

    picture = Image.open(io.BytesIO(raw)).convert("RGB")
    for count in COLORS:
        few = picture.quantize(count, dither=Image.Dither.NONE).convert("RGB")
        few.save(path, lossless=True, quality=100, method=6)
        if path.stat().st_size < LARGEST:
            break
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
