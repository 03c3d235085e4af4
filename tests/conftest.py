"""Fixtures shared by all tests: tiny pipelines, one per kind and session, and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import shake_256
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commandline import Run, command_line
from tiny import KINDS, tiny_pipeline

torch.set_num_threads(1)
_PIPES: dict[str, Any] = {}


@pytest.fixture(params=KINDS)
def pipe(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A tiny pipeline of each kind; whatever a test attached is gone afterwards."""
    kind = request.param
    if kind not in _PIPES:
        _PIPES[kind] = tiny_pipeline(kind)
    yield _PIPES[kind]
    from loracomp import detach

    detach(_PIPES[kind])


@pytest.fixture(autouse=True)
def same_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """New keys are the same in every run: one key in a hundred finds its mark in noise at one percent."""
    numbers = count()

    def token(size: int = 32) -> bytes:
        return shake_256(f"{request.node.nodeid} {next(numbers)}".encode()).digest(size)

    monkeypatch.setattr("loracomp.watermark.keys.secrets", SimpleNamespace(token_bytes=token))


@pytest.fixture
def loracomp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``loracomp ARGUMENTS…`` in this process."""
    return command_line(monkeypatch, capsys)
