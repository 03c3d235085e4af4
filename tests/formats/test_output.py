"""Files written piece by piece: right in any order, hashed as they are, refused where values are broken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from math import inf, nan
from pathlib import Path

import pytest
import torch

from loracomp.errors import UsageError
from loracomp.formats import output
from loracomp.formats.output import Output

BEGIN = 24


def pieces() -> dict[str, torch.Tensor]:
    """Tensors of different sizes and shapes."""
    shapes = {"a": (3, 5), "b": (1,), "c": (7, 2, 1, 1), "d": (4, 4)}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def written(path: Path, order: Sequence[str], parts: dict[str, torch.Tensor]) -> str:
    """Puts the parts in an order, and gives the hash; the file begins with other bytes."""
    places, place = {}, BEGIN
    for key, values in parts.items():
        places[key] = place
        place += values.numel() * 4
    with path.open("w+b") as file:
        file.write(b"x" * BEGIN)
        file.flush()
        with Output(file.fileno(), places, "thing") as out:
            for key in order:
                out.put(key, parts[key])
            return out.content_hash()


@pytest.mark.parametrize("order", ["abcd", "dcba", "acbd", "bdac"])
@pytest.mark.parametrize("waiting", [0, 8])
def test_any_order_makes_the_same_file(
    tmp_path: Path, order: str, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_WAITING", waiting)
    monkeypatch.setattr(output, "_SYNC_BYTES", 16)
    parts = pieces()
    expected = b"".join(values.numpy().tobytes() for values in parts.values())
    digest = written(tmp_path / "a", order, parts)
    assert (tmp_path / "a").read_bytes() == b"x" * BEGIN + expected
    assert digest == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("key", ["a", "d"])
def test_broken_values_are_refused(tmp_path: Path, value: float, key: str) -> None:
    parts = pieces()
    parts[key].flatten()[2] = value
    with pytest.raises(UsageError, match=f"thing: the tensor '{key}' does not fit"):
        written(tmp_path / "a", "abcd", parts)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, raw: memoryview, place: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path / "a", "abcd", pieces())
