"""A short run of the fuzzer, and hypothesis over whole adapters and whole headers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.mutations import CORPUS, DIT, LIMITS, UNET, Reader, container, mutated, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loracomp.adapter import Adapter
from loracomp.bases import modules
from loracomp.errors import FormatError
from loracomp.formats import DIALECTS, Limits, inspect, load, save
from loracomp.formats.source import Source
from loracomp.lowrank import LowRank, concatenate, norm, singular_values

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def reader() -> Reader:
    reader = Reader()
    for _, data in seeds():
        reader.feed(data)
    reader.slowest = 0.0
    return reader


def test_seeds_are_read(reader: Reader) -> None:
    before, count = reader.read, 0
    for _, data in seeds():
        reader.feed(data)
        count += 1
    assert reader.read == before + count


def test_the_corpus_is_read_or_refused_in_time(reader: Reader) -> None:
    files = sorted(CORPUS.glob("*.bin"))
    assert len(files) >= 20
    for file in files:
        reader.feed(file.read_bytes())
    assert reader.slowest < 1


def test_mutations_are_read_or_refused_in_time(reader: Reader) -> None:
    chance = random.Random(7)
    pool = [data for _, data in seeds()]
    refused, read = reader.refused, reader.read
    for _ in range(1500):
        reader.feed(mutated(chance.choice(pool), chance))
    assert reader.refused > refused + 500 and reader.read > read + 100 and reader.slowest < 1


def test_the_report_and_the_loader_agree(tmp_path: Path) -> None:
    """What the report calls whole loads, and what does not load is not whole."""
    chance, path = random.Random(3), tmp_path / "a.safetensors"
    pool = [data for _, data in seeds()]
    inputs = [file.read_bytes() for file in sorted(CORPUS.glob("*.bin"))]
    inputs += pool + [mutated(chance.choice(pool), chance) for _ in range(600)]
    whole = partial = 0
    for data in inputs:
        path.write_bytes(data)
        table = DIT if b"single_" in data else UNET
        try:
            report = inspect(path, modules=table, limits=LIMITS)
        except FormatError:
            continue
        try:
            load(path, modules=table, limits=LIMITS)
        except FormatError:
            assert not report.complete
            partial += 1
        else:
            # Factors of float64 can be finite where no tool can hold their product.
            too_large = [reason for reason in report.damaged.values() if "too large" in reason]
            assert report.complete or (not report.unmatched and len(too_large) == len(report.damaged))
            whole += 1
    assert whole > 50 and partial > 10


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I64", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**64), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 2**64), min_size=2, max_size=2) | JSON,
    }
)


@QUICK
@given(st.dictionaries(st.text(max_size=12), ENTRY | JSON, max_size=4) | JSON, st.binary(max_size=64))
def test_any_header_is_refused_in_one_line_or_right(tmp_path_factory: Any, header: Any, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    path.write_bytes(container(header, data))
    try:
        with Source(path, Limits(tensors=100)) as source:
            total = sum(info.end - info.begin for info in source.tensors.values())
            assert total == len(data)
            assert all(source.tensor(key).shape == info.shape for key, info in source.tensors.items())
    except FormatError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path))


PATHS = {
    base: [p for p in modules(base) if p.endswith(("to_q", "to_k", "to_v", "proj_mlp", "conv1", "q_proj"))][
        :9
    ]
    for base in ("glyph", "sd15", "flux", "sd3")
}


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    """Adapters with any subset of some layers, ranks, alphas, scales of values, zeros and dtypes."""
    base = draw(st.sampled_from(sorted(PATHS)))
    paths = draw(st.lists(st.sampled_from(PATHS[base]), min_size=1, max_size=4, unique=True))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    layers = {}
    for path in paths:
        shape, rank = modules(base)[path], draw(st.integers(1, 4))
        alpha = draw(st.none() | st.floats(-16, 16, width=32))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
        size = draw(st.sampled_from([0.0, 1e-2, 1.0]))
        down = torch.randn((rank, *shape[1:]), generator=generator)
        up = torch.randn((shape[0], rank, *(1,) * (len(shape) - 2)), generator=generator) * size
        layers[path] = LowRank(down.to(dtype), up.to(dtype), alpha)
    return Adapter(layers, base, "any")


@QUICK
@given(adapters(), st.sampled_from(sorted(DIALECTS)))
def test_any_adapter_survives_any_dialect(tmp_path_factory: Any, adapter: Adapter, dialect: str) -> None:
    folder: Path = tmp_path_factory.mktemp("any")
    first = save(adapter, folder / "any.safetensors", dialect=dialect)
    loaded = load(first, base=adapter.base)
    coarse = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
    for path, layer in adapter.layers.items():
        if path not in loaded.layers:
            assert norm(layer) == 0, path
            continue
        other = loaded.layers[path]
        pair = [layer.to(dtype=torch.float64), other.to(dtype=torch.float64).scaled(-1)]
        missed = float(singular_values(concatenate(pair)).norm())
        assert missed <= coarse[layer.up.dtype] * norm(layer) + 1e-6, path
    again = save(loaded, folder / "again.safetensors", dialect=dialect, metadata={"ss_output_name": "any"})
    assert load(again, base=adapter.base).layers.keys() == loaded.layers.keys()
    assert json.dumps(dict(loaded.metadata))
