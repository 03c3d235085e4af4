"""A running app and a headless Chromium before it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from webpage import PATIENCE_MS, Ask, Open

ROOT = Path(__file__).parents[3]
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A browser on a busy machine may miss a moment that a test waits for: those tests get two more tries."""
    if config.pluginmanager.hasplugin("rerunfailures"):
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=2))


class Server:
    """``loracomp app`` in a process of its own.

    Attributes:
        folder: Holds its data, its library and its pictures.
        address: Where it answers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, ""
        for name in ("library", "pictures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._log = (self.folder / "log.txt").open("a")
        command = [
            sys.executable, "-m", "loracomp", "app", "--port", "0", "--data", str(self.folder / "data"),
            "--library", str(self.folder / "library"), "--pictures", str(self.folder / "pictures"),
            "--codec", str(self.folder / "codec.safetensors"),
            "--calibration", str(self.folder / "calibration.safetensors"),
        ]  # fmt: skip
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment, cwd=self.folder
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "http://" in line:
                self.address = "http://" + line.split("http://", 1)[1].split()[0].rstrip("/")
                break
        until = time.monotonic() + PATIENCE_MS / 1000
        while self._process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.address, timeout=10):
                return
            time.sleep(0.1)
        raise AssertionError(f"the app did not start:\n{(self.folder / 'log.txt').read_text()}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it; its training goes on."""
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._log is not None:
            self._log.close()
        self._process = self._log = None

    def renew(self) -> None:
        """Starts it anew on an empty library and without a history."""
        self.stop()
        for name in ("data", "library"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "library").mkdir()
        self.start()


def chromium() -> str:
    """The browser; where there is none, a skip that says so, and a failure in continuous integration."""
    named = [os.environ["LORACOMP_CHROMIUM"]] if "LORACOMP_CHROMIUM" in os.environ else BROWSERS
    found = next((path for name in named if (path := shutil.which(name))), None)
    if found is None:
        missing = "no Chromium here: apt-get install chromium, or set LORACOMP_CHROMIUM to its program"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    program = chromium()
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An app with a few training pictures, for the tests of one file."""
    made = Server(tmp_path_factory.mktemp("app"))
    data = made.folder / "pictures" / "drawings"
    data.mkdir()
    for path in sorted((ROOT / "examples" / "styles" / "mono").iterdir())[:12]:
        if path.is_file():
            shutil.copyfile(path, data / path.name)
    small_codec(made.folder)
    made.start()
    yield made
    made.stop()


def noise(count: int, seed: int, side: int = 32) -> torch.Tensor:
    """Pictures of soft spots, (count, 3, side, side), of the values that a file can hold."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=source)
    made = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return ((made * 255).round() / 255).clamp(0, 1)


def small_codec(folder: Path) -> None:
    """A codec that nothing was learned for, and its calibration: enough to tell pictures made for a key."""
    from loracomp.watermark.calibration import joined
    from loracomp.watermark.codec import Codec
    from loracomp.watermark.networks import Shape
    from loracomp.watermark.screening import with_acceptance

    torch.manual_seed(1)
    codec = Codec.fresh(Shape(12, 16, 32, 40, widths=(8, 8), blocks=(1, 1), bits=32), "glyph").to("cpu")
    codec.save(folder / "codec.safetensors")
    rows, half = codec.read(noise(600, 0)), torch.arange(300)
    parts = [("real", rows[:300], half), ("base", rows[300:], half)]
    with_acceptance(joined(parts, "glyph", codec.digest), 50).save(folder / "calibration.safetensors")


@pytest.fixture
def asked(server: Server) -> Ask:
    """What the HTTP interface answers to ``asked(path)`` or ``asked(path, body)``; bytes if it is no JSON."""

    def ask(path: str, body: Any = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{server.address}/api/v1{path}", sent, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_MS / 1000) as answer:
            body = answer.read()
        return json.loads(body) if answer.headers["Content-Type"].startswith("application/json") else body

    return ask


# Everything of an earlier test is forgotten as a page is opened; a reload of that page keeps what it holds.
FORGET = (
    "if (!sessionStorage.getItem('opened')) { localStorage.clear(); sessionStorage.setItem('opened', '1'); }"
)


@pytest.fixture(scope="session")
def contexts(browser: Any) -> Iterator[dict[tuple[int, bool], Any]]:
    """Browser contexts by width and mode, kept because they have the page's scripts in their cache."""
    opened: dict[tuple[int, bool], Any] = {}
    yield opened
    for context in opened.values():
        context.close()


@pytest.fixture
def visit(
    browser: Any,
    contexts: dict[tuple[int, bool], Any],
    server: Server,
    request: pytest.FixtureRequest,
) -> Iterator[Open]:
    """Opens the page, ``visit(width=…, dark=…)``, and closes the one before.

    Complaints of the page's own scripts fail the test.
    """
    complaints: list[str] = []
    if getattr(request.node, "execution_count", 1) > 1:
        server.renew()  # what the try before it left behind is no part of the test

    def close() -> None:
        for context in contexts.values():
            for page in context.pages:
                page.close()

    def go(width: int = 1440, dark: bool = False) -> Any:
        close()
        if (width, dark) not in contexts:
            size, mode = {"width": width, "height": 900}, "dark" if dark else "light"
            contexts[width, dark] = browser.new_context(viewport=size, color_scheme=mode)
            contexts[width, dark].add_init_script(FORGET)
        page = contexts[width, dark].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.address)
        page.locator("#shelf [data-act=pick]").first.wait_for()
        return page

    yield go
    close()
    assert not complaints
