"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


@pytest.fixture
def recompilations() -> Callable[[], Any]:
    """A context whose value tells how many frames the compiler has compiled since it began."""

    @contextmanager
    def counting() -> Iterator[Callable[[], int]]:
        counters = torch._dynamo.utils.counters
        before = counters["stats"]["unique_graphs"]
        yield lambda: counters["stats"]["unique_graphs"] - before

    return counting
