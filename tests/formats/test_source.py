"""Tensors of one module read in one go: the same values, and the same hash, as one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from formats.mutations import container

from loracomp.formats.gate import DTYPES
from loracomp.formats.source import Source

NAMES = {dtype: name for name, dtype in DTYPES.items()}
FRACTIONS = [dtype for dtype in NAMES if dtype.is_floating_point]


def written(path: Path, tensors: Sequence[tuple[str, torch.Tensor]]) -> bytes:
    """A file of the tensors in this order, without any padding; its tensor bytes."""
    header, data = {}, b""
    for key, values in tensors:
        raw = bytes(values.contiguous().flatten().view(torch.uint8).numpy())
        places = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": NAMES[values.dtype], "shape": list(values.shape), "data_offsets": places}
        data += raw
    path.write_bytes(container(header, data))
    return data


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("types", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("apart", [False, True])
def test_neighbors_in_memory_of_their_own(tmp_path: Path, types: tuple[int, int], apart: bool) -> None:
    """Tensors that touch, of one type or of two, where the second need not lie at a multiple of its size."""
    kinds = [(torch.float16, torch.float32)[number] for number in types]
    tensors = [("a", drawn((3, 5), kinds[0], 1)), ("c", drawn((1,), kinds[0], 3))]
    tensors.insert(1 + apart, ("b", drawn((5, 3), kinds[1], 2)))
    path = tmp_path / "a.safetensors"
    written(path, tensors)
    with Source(path) as source:
        first, second = source.side_by_side(["a", "b"])
        kept = first.clone()
        source.side_by_side(["b", "c"] if not apart else ["c", "b"])
        assert torch.equal(first, kept) and torch.equal(first, dict(tensors)["a"])
        assert torch.equal(second, dict(tensors)["b"])


@pytest.mark.parametrize("dtype", FRACTIONS, ids=str)
@pytest.mark.parametrize("alpha", [torch.float32, torch.float16, torch.bfloat16, torch.int64], ids=str)
def test_a_module_in_one_go(tmp_path: Path, dtype: torch.dtype, alpha: torch.dtype) -> None:
    """Modules that grow, shrink and come back, each with an alpha that shifts what follows."""
    sizes = [(2, 3, 5), (4, 7, 2), (1, 3, 3), (4, 7, 2), (2, 3, 5)]
    tensors = []
    for index, (rank, rows, columns) in enumerate(sizes):
        tensors += [
            (f"{index}.alpha", torch.tensor(index + 1).to(alpha)),
            (f"{index}.down", drawn((rank, columns), dtype, index)),
            (f"{index}.up", drawn((rows, rank, 1, 1), dtype, index + 9)),
        ]
    path, known = tmp_path / "a.safetensors", dict(tensors)
    data = written(path, tensors)
    with Source(path) as source:
        source.start_hash()
        for index in range(len(sizes)):
            down, up = source.together([f"{index}.down", f"{index}.up"], f"{index}.alpha")
            assert torch.equal(down, known[f"{index}.down"].float())
            assert torch.equal(up, known[f"{index}.up"].float())
            assert source.scalar(f"{index}.alpha") == index + 1
        assert source.content_hash() == hashlib.sha256(data).hexdigest()


def test_a_module_in_pieces(tmp_path: Path) -> None:
    """Factors that lie apart, of two types, or empty, and an alpha far away or too long to be one."""
    tensors = [
        ("far.alpha", torch.tensor(3.0)),
        ("long.alpha", torch.arange(40.0)),
        ("up", drawn((3, 2), torch.float16, 1)),
        ("between", drawn((5,), torch.float16, 2)),
        ("down", drawn((2, 4), torch.float16, 3)),
        ("other", drawn((2, 2), torch.float32, 4)),
        ("none", torch.zeros(0, 2)),
        ("nothing", torch.zeros(2, 0)),
    ]
    path, known = tmp_path / "a.safetensors", dict(tensors)
    data = written(path, tensors)
    with Source(path) as source:
        source.start_hash()
        for keys, alpha in [
            (["up", "down"], "far.alpha"),
            (["up"], "long.alpha"),
            (["down", "other"], ""),
            (["none", "nothing"], "far.alpha"),
            (["other", "none"], "up"),
        ]:
            for key, values in zip(keys, source.together(keys, alpha), strict=True):
                assert torch.equal(values, known[key].float()), key
        assert source.scalar("far.alpha") == 3
        assert source.content_hash() == hashlib.sha256(data).hexdigest()
