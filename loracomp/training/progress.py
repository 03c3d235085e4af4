"""How a run shows what it is doing: a bar on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from loracomp.training.loop import Report

PLAIN_SECONDS = 5.0


def silent(event: Mapping[str, Any]) -> None:
    """Shows nothing."""


def json_lines(stream: TextIO) -> Report:
    """Every event as one line of JSON."""

    def report(event: Mapping[str, Any]) -> None:
        print(json.dumps(dict(event)), file=stream, flush=True)

    return report


def plain_lines(stream: TextIO) -> Report:
    """Events as sentences; steps at most every five seconds."""
    import time

    told = float("-inf")

    def report(event: Mapping[str, Any]) -> None:
        nonlocal told
        if event["event"] == "step" and event["step"] < event["steps"]:
            if time.monotonic() - told < PLAIN_SECONDS:
                return
            told = time.monotonic()
        print(sentence(event), file=stream, flush=True)

    return report


@contextmanager
def terminal_bar() -> Iterator[Report]:
    """A bar with steps, loss and remaining time; other events as lines above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task: Any = None

        def report(event: Mapping[str, Any]) -> None:
            nonlocal task
            if event["event"] != "step":
                bar.console.print(sentence(event), highlight=False, markup=False)
                return
            if task is None:
                task = bar.add_task("training", total=event["steps"], note="")
            note = f"loss {event['loss']:.4f}, {clock(event['eta_s'])} left"
            bar.update(task, completed=event["step"], note=note)

        yield report


@contextmanager
def reporter(stream: TextIO, as_json: bool) -> Iterator[Report]:
    """The reporter that suits the stream."""
    if as_json:
        yield json_lines(stream)
    elif stream.isatty():
        with terminal_bar() as report:
            yield report
    else:
        yield plain_lines(stream)


def sentence(event: Mapping[str, Any]) -> str:
    """An event in words."""
    kind = event["event"]
    if kind == "step":
        left = clock(event["eta_s"])
        speed = f"{event['step_ms'] / 1000:.2f} s/step"
        return f"step {event['step']}/{event['steps']}, loss {event['loss']:.4f}, {speed}, {left} left"
    if kind == "start":
        return (
            f"{event['name']}: {event['kind']} on {event['base']}, {event['pictures']} pictures, "
            f"{event['steps']} steps, rank {event['rank']}, {event['parameters']:,} parameters, "
            f"{event['precision']} on {event['device']}"
        )
    return str(event["text"])


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
