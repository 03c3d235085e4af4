"""Which scripts and styles Gradio's page will ask for, read from the page's own files.

Its scripts name each other, so that a browser learns of the last ones when it has run those before. Named at
once, in the head of the page, they come at once.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

SHOWN = (
    "accordion", "browserstate", "button", "checkbox", "column", "dropdown", "file", "form", "html", "number",
    "radio", "row", "state", "statustracker", "tabitem", "tabs", "textbox", "timer",
)  # fmt: skip
"""Kinds of components that are there before anything is pressed."""
_LOADED = re.compile(r"import\(`\./([\w.-]+)`\).{0,60}?__vite__mapDeps\(\[([\d,]*)\]\)")
_FILES = re.compile(r"m\.f=\[([^\]]*)\]")
_KIND = re.compile(r"\b(\w+):\{[^{}]*\bcomponent:([^{}]*)\}")
_NAME = re.compile(r"[\"'`]\./(?:assets/)?([\w.-]+\.(?:js|css))[\"'`]")
_FRAME = "Blocks-"
_HEAD = "<head>"


def frontend() -> Path | None:
    """Gradio's page, scripts and styles as they are served, without an import; None if there is none."""
    found = importlib.util.find_spec("gradio")
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) / "templates" / "frontend" if places else None


def page_head(folder: Path) -> tuple[bytes, bytes]:
    """What every page begins with, through ``<head>``, and the links that may follow there.

    Both are empty where the page is not as expected, which costs time and nothing else.

    Args:
        folder: As :func:`frontend` gives it.
    """
    try:
        page = (folder / "index.html").read_text(encoding="utf-8")
        names = _asked_for(folder / "assets", page)
    except OSError:
        return b"", b""
    before, found, _ = page.partition(_HEAD)
    if not found or "{" in before:
        return b"", b""
    return (before + found).encode(), "".join(map(_link, names)).encode()


def _link(name: str) -> str:
    kind = 'rel="modulepreload"' if name.endswith(".js") else 'rel="preload" as="style"'
    return f'<link {kind} crossorigin href="./assets/{name}">'


def _asked_for(assets: Path, page: str) -> list[str]:
    """Files that are there, scripts first: of the page, of its frame, and of each kind of component shown."""
    names = [name for name in _NAME.findall(page) if (assets / name).is_file()]
    for name in [name for name in names if name.endswith(".js")]:
        for part, more in _later(_text(assets, name)).items():
            names += [part, *more]
            text = _text(assets, part)
            inner = {one: files for one, files in _later(text).items() if one.startswith(_FRAME)}
            inner |= {
                one: files
                for kind, body in _KIND.findall(text)
                if kind in SHOWN
                for one, files in _later(text, body).items()
            }
            names += [name for one, files in inner.items() for name in (one, *files)]
    there = [name for name in dict.fromkeys(names) if (assets / name).is_file()]
    return sorted(there, key=lambda name: not name.endswith(".js"))


def _later(text: str, part: str | None = None) -> dict[str, list[str]]:
    """What a script, or a part of it, loads later: file, and the files that come with it."""
    listed = _FILES.search(text)
    files = _NAME.findall(listed[1]) if listed else []
    return {
        name: [files[int(at)] for at in numbers.split(",") if at and int(at) < len(files)]
        for name, numbers in _LOADED.findall(text if part is None else part)
    }


def _text(assets: Path, name: str) -> str:
    path = assets / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""
