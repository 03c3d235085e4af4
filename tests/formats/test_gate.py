"""Damaged, hostile and foreign files are refused with one line each, before anything is allocated."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loracomp.errors import FormatError
from loracomp.formats import Limits, diagnose, load
from loracomp.formats.matching import match
from loracomp.formats.source import Source


def container(header: dict[str, object] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[object], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = {"a.lora_A.weight": entry([1], 0, 4)}
BAD = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\x01" * 7, "too few"),
    "header beyond the file": (struct.pack("<Q", 10**6) + b"{}", "truncated"),
    "header bomb": (struct.pack("<Q", 2**63) + b"{" * 32, "truncated"),
    "truncated data": (container({"a": entry([8], 0, 32)}, b"\0" * 8), "24 bytes too early"),
    "trailing bytes": (container(ONE, b"\0" * 9), "bytes after"),
    "overlap": (container({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12), "overlaps"),
    "gap": (container({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12), "leaves a gap"),
    "extent": (container({"a": entry([3], 0, 4)}, b"\0" * 4), "its shape needs 12"),
    "overflowing shape": (container({"a": entry([2**62, 8], 0, 0)}), "impossible shape"),
    "overflow behind a zero": (container({"a": entry([0, 2**62, 8], 0, 0)}), "impossible shape"),
    "negative side": (container({"a": entry([-1], 0, 4)}, b"\0" * 4), "impossible"),
    "side is a boolean": (container({"a": entry([True], 0, 4)}, b"\0" * 4), "impossible"),
    "side is a float": (container({"a": entry([1.0], 0, 4)}, b"\0" * 4), "impossible"),
    "reversed offsets": (container({"a": entry([0], 4, 0)}, b"\0" * 4), "gives the tensor"),
    "unknown dtype": (container({"a": entry([1], 0, 4, "C64")}, b"\0" * 4), "dtype C64"),
    "duplicate key": (container(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'), "'a' twice"),
    "not JSON": (container(b'{"a":'), "not valid JSON"),
    "not an object": (container(b"[1, 2]"), "not a JSON object"),
    "NaN literal": (container(b'{"a": NaN}'), "not valid JSON"),
    "deep JSON": (container(b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"), "not valid JSON"),
    "huge number": (container(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "not text": (container(b'{"\xff\xfe":1}'), "not UTF-8"),
    "metadata no strings": (container({"__metadata__": {"a": 1}, **ONE}, b"\0" * 4), "not strings"),
    "no tensors": (container({"__metadata__": {}}), "no tensors"),
    "control characters": (container({"a\nb": entry([1], 0, 4)}, b"\0" * 4), "unusable name"),
    "endless name": (container({"a" * 600: entry([1], 0, 4)}, b"\0" * 4), "unusable name"),
    "web page": (b"<!DOCTYPE html><html>login</html>" * 20, "web page"),
    "JSON error": (b'{"error": "not found"}', "JSON text"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\1" * 64, "GGUF"),
    "old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle can run code"),
    "gzip": (b"\x1f\x8b\x08\0" + b"\1" * 64, "archive"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, expected = BAD[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        load(path)
    message = str(caught.value)
    assert expected in message and message.startswith(str(path)) and "\n" not in message and ";" in message


@pytest.mark.parametrize("name", ["x.pt", "x.ckpt", "x.bin", "x.safetensors"])
def test_torch_checkpoints_are_refused_by_content(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(FormatError, match="a pickle can run code"):
        load(tmp_path / name)


def test_archives_folders_pipes_and_missing_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("lora.safetensors", b"x")
    os.mkfifo(tmp_path / "pipe")
    cases = {"a.zip": "archive", ".": "folder", "pipe": "not a regular file", "none": "no such file"}
    for name, expected in cases.items():
        with pytest.raises(FormatError, match=expected):
            load(tmp_path / name)
    with pytest.raises(FormatError, match="cannot be read"):
        load("a\0b")


def test_limits_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"a{i}": torch.zeros(4) for i in range(40)}, path)
    size = path.stat().st_size
    for limits, expected in (
        (Limits(file_bytes=size - 1), "too large"),
        (Limits(header_bytes=64), "header of"),
        (Limits(tensors=39), "more than the limit of 39|more entries"),
    ):
        with pytest.raises(FormatError, match=expected), Source(path, limits):
            pass
    with Source(path, Limits(file_bytes=size, tensors=40)) as source:
        assert len(source.tensors) == 40


def test_many_entries_are_counted_before_they_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(container(b"[" + b"{}," * 100_000 + b"{}]"))
    with pytest.raises(FormatError, match="more entries than"), Source(path, Limits(tensors=1000)):
        pass


def test_tensors_equal_what_safetensors_reads(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "a.safetensors"
    tensors = {
        "half": torch.randn(3, 5).half(),
        "bf": torch.randn(7).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "byte": torch.arange(3, dtype=torch.uint8),
        "none": torch.zeros(0, 4),
    }
    save_file(tensors, path, metadata={"k": "v"})
    expected = load_file(path)
    with Source(path) as source:
        assert source.metadata == {"k": "v"} and set(source.tensors) == set(expected)
        for key, value in expected.items():
            assert torch.equal(source.tensor(key), value) and source.tensor(key).dtype == value.dtype


def test_unaligned_data_are_read_right(tmp_path: Path) -> None:
    values = torch.arange(4, dtype=torch.float32)
    header = {"flag": entry([1], 0, 1, "U8"), "x": entry([4], 1, 17)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(container(header, b"\1" + values.numpy().tobytes()))
    with Source(path) as source:
        assert torch.equal(source.tensor("x"), values)


CROWDED = {
    "list": b'{"a":[' + b"0," * 399_000 + b"0]}",
    "metadata": b'{"__metadata__":{' + b",".join(b'"%07d":"v"' % i for i in range(399_000)) + b"}}",
    "tensors": b"{"
    + b",".join(
        b'"lora_unet_%05d.alpha":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(20_000)
    )
    + b"}",
    "string": b'{"a":"' + b"x" * 8_000_000 + b'"}',
    "escapes": b'{"a":"' + b'\\"' * 4_000_000 + b'"}',
    "quotes": b'"' * 8_000_000,
    "last key twice": b"{" + b",".join(b'"%05d":0' % (i % 19_999) for i in range(20_000)) + b"}",
    "braces": b"[" + b"{}," * 2_000_000 + b"{}]",
}


@pytest.mark.parametrize("case", CROWDED)
def test_the_worst_headers_take_bounded_time_and_memory(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(container(CROWDED[case]))
    diagnose(path)  # makes the tables of names
    start = time.process_time()
    assert diagnose(path).error
    assert time.process_time() - start < 2
    if case == "tensors":
        return  # whole, and matched against every base: tracing that takes longer than all the rest
    tracemalloc.start()
    with pytest.raises(FormatError), Source(path) as source:
        match(source)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 256 << 20
