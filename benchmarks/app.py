"""The web app: how soon it answers, how fast its library is, how fair its queue, how flat its memory.

    python -m benchmarks.app [--adapters 1000] [--clients 20] [--images 200] [--only start,library,…]

Every part talks to a real ``loracomp app`` over HTTP. Targets on two cores: the page within 5 s of the start;
pages and searches of 1,000 adapters under 300 ms, while an image is drawn; 20 users at once without an error,
each served as often as the others; memory that 200 images do not raise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

RESULT = Path(__file__).parent / "results" / "app.json"
_QUESTIONS = ("", "ink", "study 05", "neon drawing", "look77")
_STARTS = 5
_SMALL = {"prompt": "a watermelon emoji", "steps": 2, "width": 64, "height": 64, "preview": False}


class Server:
    """A running app, asked over HTTP."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address

    def ask(self, path: str, body: Any = None, token: str = "") -> Any:
        """The JSON answer of a route."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{self.address}/api/v1/{path}", data, headers), timeout=120) as answer:
            return json.loads(answer.read())

    def resident(self) -> float:
        """Resident memory in MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise OSError("no VmRSS; this part needs Linux")

    def spent(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def finished(self, id_: str, token: str = "") -> dict[str, Any]:
        """A job when it is over."""
        while True:
            job: dict[str, Any] = self.ask(f"jobs/{id_}", token=token)
            if job["state"] not in ("queued", "running"):
                return job
            time.sleep(0.1)


@contextmanager
def app(folder: Path, *options: str, ready: bool = True) -> Iterator[Server]:
    """An app with its data in a folder; ``ready`` waits for the base model and the library."""
    place = ("--port", "0", "--data", str(folder / "data"))
    command = [sys.executable, "-m", "loracomp", "app", *place, *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # What is installed has its bytecode beside it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline() if process.stdout else ""
        server = Server(process, line.split()[2])
        token = options[options.index("--token") + 1].partition("=")[2] if "--token" in options else ""
        while ready:
            state = server.ask("state", token=token)
            library_state = state["library"]
            if state["state"] == "ready" and library_state["adapters"] and not library_state["scanning"]:
                break
            time.sleep(0.2)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        if process.stdout:
            process.stdout.close()


def start(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds from the command to the page's first bytes, to what a person can press in it, and to an image.

    The browser, which is up already, opens the address as soon as it is printed, as a person does.
    Seconds of processor time are the app's own: a busy machine does not change them much. Medians of
    some starts, each on an empty folder, with the shortest and the longest wait for the page.
    """
    with browser() as opened:
        turns = [_begun(opened, folder / str(number)) for number in range(_STARTS)]
    found = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    last = "interactive_s" if "interactive_s" in found else "page_s"
    return {**found, f"{last}_range": [pick(turn[last] for turn in turns) for pick in (min, max)]}


def _begun(opened: Any, folder: Path) -> dict[str, float]:
    folder.mkdir()
    began = time.monotonic()
    with app(folder, ready=False) as server:
        found = {"address_s": time.monotonic() - began}
        page = opened.new_page() if opened is not None else None
        if page is not None:
            page.goto(server.address, wait_until="commit")
        else:
            urlopen(Request(server.address, headers={"Accept": "text/html"}), timeout=60).read()
        found |= {"page_s": time.monotonic() - began, "page_cpu_s": server.spent()}
        if page is not None:
            for name, place in (("interactive", "#generate"), ("gallery", "#shelf [data-act=pick]")):
                page.locator(place).first.wait_for(timeout=120_000)
                found |= {f"{name}_s": time.monotonic() - began, f"{name}_cpu_s": server.spent()}
            page.close()
        job = server.finished(server.ask("jobs/generate", _SMALL)["id"])
        if job["state"] != "done":
            raise SystemExit(f"the first image failed: {job['error']}")
        return {**found, "image_s": time.monotonic() - began}


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium that is up already; None where there is none, or no playwright."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        yield None
        return
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def library(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds from the command until all adapters are known; milliseconds of pages and searches.

    These are asked for at rest and while an image is drawn.
    """
    write_adapters(folder / "loras", options.adapters)
    began = time.monotonic()
    with app(folder, "--library", str(folder / "loras"), ready=False) as server:
        while server.ask("adapters")["total"] < options.adapters:
            time.sleep(0.5)
        known = time.monotonic() - began
        while server.ask("state")["state"] == "loading":
            time.sleep(0.2)
        rest = asked(server)
        id_ = server.ask("jobs/generate", {**_SMALL, "steps": 150})["id"]
        busy = asked(server)
        server.finished(id_)
        return {"adapters": options.adapters, "known_s": known, "at_rest_ms": rest, "while_drawing_ms": busy}


def asked(server: Server, times: int = 40) -> dict[str, float]:
    """Median, 95th percentile and maximum of milliseconds of a page."""
    taken = []
    for number in range(times):
        query = _QUESTIONS[number % len(_QUESTIONS)].replace(" ", "+")
        began = time.monotonic()
        server.ask(f"adapters?query={query}&page={1 + number % 7}&compatible_with=glyph")
        taken.append(1000 * (time.monotonic() - began))
    return {"median": statistics.median(taken), "p95": sorted(taken)[int(0.95 * times)], "most": max(taken)}


def clients(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Users who ask at once: errors, and how unevenly they were served at any time."""
    secrets = {f"user{n}": f"secret-of-user-{n:04d}" for n in range(options.clients)}
    told = [part for name, secret in secrets.items() for part in ("--token", f"{name}={secret}")]
    finished: list[tuple[float, str]] = []
    errors: Counter[str] = Counter()

    def use(server: Server, name: str, token: str) -> None:
        try:
            ids = [server.ask("jobs/generate", _SMALL, token)["id"] for _ in range(options.each)]
            for id_ in ids:
                job = server.finished(id_, token)
                finished.append((job["finished"], name))
                errors[job["error"] or job["state"]] += job["state"] != "done"
        except (HTTPError, OSError) as error:
            errors[str(error)] += 1

    with app(folder, *told) as server:
        began = time.monotonic()
        threads = [threading.Thread(target=use, args=(server, *pair)) for pair in secrets.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    served: Counter[str] = Counter(dict.fromkeys(secrets, 0))
    uneven = 0
    for _, name in sorted(finished):
        served[name] += 1
        uneven = max(uneven, max(served.values()) - min(served.values()))
    return {
        "clients": options.clients,
        "images": len(finished),
        "errors": {text: count for text, count in errors.items() if count},
        "largest_lead": uneven,
        "seconds": seconds,
    }


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Resident memory over images, in MiB, and its slope over the second half."""
    with app(folder) as server:
        known = {row["name"]: row["id"] for row in server.ask("adapters")["rows"]}
        uses = [{"id": known[name]} for name in ("mono", "watermelon")]
        seen = []
        for number in range(options.images):
            request = {**_SMALL, "adapters": uses, "seed": number, "method": ("merge", "switch")[number % 2]}
            job = server.finished(server.ask("jobs/generate", request)["id"])
            if job["state"] != "done":
                raise SystemExit(f"image {number} failed: {job['error']}")
            seen.append(server.resident())
    half = seen[len(seen) // 2 :]
    slope = statistics.linear_regression(range(len(half)), half).slope if len(half) > 1 else 0.0
    return {
        "images": options.images,
        "first_mib": seen[0],
        "middle_mib": half[0],
        "last_mib": seen[-1],
        "slope_mib_per_100": 100 * slope,
    }


def write_adapters(folder: Path, count: int) -> None:
    """Small LoRA files of glyph, each with its own header."""
    import torch
    from safetensors.torch import save_file

    from loracomp.bases import modules

    path = "unet.down_blocks.0.attentions.0.proj_in"
    key, shape = f"lora_{path.replace('.', '_')}", modules("glyph")[path]
    tail = (1, 1) if len(shape) == 4 else ()
    tensors = {
        f"{key}.lora_down.weight": torch.randn(1, shape[1], *tail),
        f"{key}.lora_up.weight": torch.randn(shape[0], 1, *tail),
        f"{key}.alpha": torch.tensor(1.0),
    }
    folder.mkdir(parents=True)
    for number in range(count):
        style = ("ink", "pixel", "oil", "neon", "chalk")[number % 5]
        header = {
            "modelspec.title": f"{style} study {number:04d}",
            "modelspec.trigger_phrase": f"{style} drawing, look{number}",
            "modelspec.tags": f"style, {style}",
            "modelspec.license": "CC0-1.0",
        }
        save_file(tensors, folder / f"file{number:04d}.safetensors", header)


def main() -> None:
    """Runs the parts that are asked for and writes down what they give."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--each", type=int, default=3, help="images of each client")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--only", default="start,library,clients,memory")
    options = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    found["machine"] = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    runs = {"start": start, "library": library, "clients": clients, "memory": memory}
    for part, run in ((name, runs[name]) for name in options.only.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            found[part] = rounded({"load_before": os.getloadavg()[0], **run(options, Path(folder))})
        print(part, json.dumps(found[part]))
        RESULT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def rounded(value: Any) -> Any:
    """Numbers with three digits after the point."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
