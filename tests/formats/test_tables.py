"""Files whose table of tensors was checked before are read as if it had not been."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from adapterfiles import header, tensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from loracomp.errors import BaseMismatchError, FormatError
from loracomp.formats import tables
from loracomp.formats.gate import Header, Limits, read_header
from loracomp.formats.matching import match
from loracomp.formats.source import Source

META = {"modelspec.title": 'a "title" \\ with ä', "ss_tag_frequency": json.dumps({"a": {"b": 1}})}
ONE = save(tensors(), META)
LENGTH = struct.unpack("<Q", ONE[:8])[0]
TEXT, DATA = ONE[8 : 8 + LENGTH], ONE[8 + LENGTH :]
BARE = save(tensors())[8 : -len(DATA)]


def read(text: bytes, data: bytes = DATA, limits: Limits | None = None) -> Header | str:
    """The header, or the message of the error that it was refused with."""
    place = os.memfd_create("file")
    try:
        os.write(place, struct.pack("<Q", len(text)) + text + data)
        size = os.fstat(place).st_size
        return read_header(place, size, "file", limits or Limits())
    except FormatError as error:
        return str(error)
    finally:
        os.close(place)


def fresh(text: bytes, data: bytes = DATA) -> Header | str:
    tables.KNOWN.clear()
    return read(text, data)


def known(text: bytes, data: bytes = DATA) -> Header | str:
    tables.KNOWN.clear()
    assert isinstance(read(TEXT), Header)
    assert isinstance(read(BARE), Header)
    return read(text, data)


def written(metadata: bytes) -> bytes:
    return b'{"__metadata__":' + metadata + b"," + BARE.rstrip()[1:]


@pytest.mark.parametrize(
    "metadata",
    [
        b"{}",
        b'{"a":"b"}',
        b'{"a":"b","a":"c"}',
        b'{"a":"b""c":"d"}',
        b'{"a":"b",}',
        b'{"a":1}',
        b'{"a":{"b":"c"}}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":"\n"}',
        b'{"a":"\\u005f"}',
        b'{"\\"":"\\\\"}',
        b'{"a":"b"},"__metadata__":{"c":"d"}',
        b'{"a":"b"},"\\u005f_metadata__":{"c":"d"}',
        b"[]",
        b"null",
        b"{" + b",".join(b'"%d":""' % n for n in range(4096)) + b"}",
        b"{" + b",".join(b'"%d":""' % n for n in range(4097)) + b"}",
        b"{" + b",".join(b'"%d\\\\":"\\\\"' % n for n in range(4097)) + b"}",
    ],
    ids=lambda data: repr(data[:32]),
)
def test_any_metadata_are_judged_as_before(metadata: bytes) -> None:
    text = written(metadata)
    assert known(text) == fresh(text)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        BARE,
        TEXT + b"   ",
        BARE + b"   ",
        b" " + BARE,
        b"{" + BARE,
        b"X" + BARE[1:],
        BARE[1:],
        TEXT.replace(b"}},", b"}}}", 1),
        TEXT.replace(b'"},', b'"}}', 1),
        TEXT.replace(b'"},', b'"} ,', 1),
        TEXT.replace(b"F32", b"F16"),
        TEXT + b"x",
    ],
    ids=range(13),
)
@pytest.mark.parametrize("extra", [b"", b"\0" * 4])
def test_any_text_is_judged_as_before(text: bytes, extra: bytes) -> None:
    assert known(text, DATA + extra) == fresh(text, DATA + extra)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([TEXT, BARE]),
    st.integers(0, len(TEXT)),
    st.integers(0, 24),
    st.one_of(st.binary(max_size=16), st.sampled_from([b'"', b",", b"{", b"}", b'":"', b'"__metadata__":'])),
)
@example(TEXT, 0, 1, b"[")
def test_damage_is_judged_as_before(text: bytes, at: int, cut: int, put: bytes) -> None:
    damaged = text[:at] + put + text[at + cut :]
    assert known(damaged) == fresh(damaged)


def test_a_known_table_moves_with_its_metadata() -> None:
    found = known(written(b'{"note":"' + b"x" * 1000 + b'"}'))
    assert isinstance(found, Header)
    assert found.metadata == {"note": "x" * 1000}
    assert min(info.begin for info in found.tensors.values()) == found.data_begin
    assert max(info.end for info in found.tensors.values()) == found.size


def test_stricter_limits_are_kept() -> None:
    assert "more entries than 2 tensors" in str((known(TEXT), read(TEXT, limits=Limits(tensors=2)))[1])


def test_the_table_is_not_parsed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(known(TEXT), Header)
    monkeypatch.setattr("loracomp.formats.gate._parsed", lambda *parts: pytest.fail("parsed again"))
    assert isinstance(read(written(b'{"other":"words"}')), Header)


def test_only_the_latest_are_kept_and_nothing_heavy() -> None:
    recent: tables.Recent[int] = tables.Recent(20)
    recent.put("a", 1, 10)
    recent.put("b", 2, 10)
    assert recent.get("a") == 1
    recent.put("c", 3, 5)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)
    recent.put("c", 4, 10)
    assert (recent.get("a"), recent.get("c")) == (1, 4)
    recent.put("a", 5, 21)
    assert (recent.get("a"), recent.get("c")) == (None, 4)
    recent.put("d", 6, 11)
    assert (recent.get("c"), recent.get("d")) == (None, 6)


def test_a_match_is_found_again_with_other_metadata_and_values(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file(tensors(number), tmp_path / f"{number}.safetensors", header(number))
    with Source(tmp_path / "1.safetensors") as one, Source(tmp_path / "2.safetensors") as two:
        assert match(one) is match(two)
        assert match(two, "glyph") == match(one)
        for _ in range(2):
            with pytest.raises(BaseMismatchError):
                match(two, "sdxl")


def test_what_is_left_out_for_its_values_is_looked_at_each_time(tmp_path: Path) -> None:
    name = next(key for key in tensors() if key.endswith("up.weight")).removesuffix("lora_up.weight")
    for file, value in (("zero", 0.0), ("one", 1.0)):
        bias = torch.full((4,), value)
        save_file(tensors() | {f"{name}diff_b": bias}, tmp_path / f"{file}.safetensors")
    with Source(tmp_path / "zero.safetensors") as zero, Source(tmp_path / "one.safetensors") as one:
        assert zero.header.layout == one.header.layout
        assert (len(match(zero).ignored), len(match(zero).unmatched)) == (1, 0)
        assert (len(match(one).ignored), len(match(one).unmatched)) == (0, 1)
