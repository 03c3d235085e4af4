"""Converting states its error exactly, and a kill leaves the old file or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loracomp.adapter import Adapter
from loracomp.bases import modules
from loracomp.errors import PartialLoadError, UsageError
from loracomp.formats import DIALECTS, convert, hashes, inspect, load, save
from loracomp.lowrank import LowRank

BASE = {"sd15": 4, "sdxl": 4, "sd3": 3, "flux": 3}


def adapter(base: str, rank: int = 4, dtype: torch.dtype = torch.float32) -> Adapter:
    generator = torch.Generator().manual_seed(2)
    paths = [p for p in modules(base) if p.endswith((".to_q", ".to_k", ".to_v"))][: BASE[base]]
    layers = {}
    for index, path in enumerate(paths):
        rows, columns = modules(base)[path]
        down = torch.randn((rank, columns), generator=generator).to(dtype)
        layers[path] = LowRank(down, torch.randn((rows, rank), generator=generator).to(dtype), 1.0 + index)
    return Adapter(layers, base, "a")


@pytest.mark.parametrize("base", BASE)
def test_every_pair_of_dialects_keeps_the_canonical_hash(base: str, tmp_path: Path) -> None:
    start = save(adapter(base), tmp_path / "start.safetensors")
    expected = inspect(start).canonical_hash
    files = {name: tmp_path / f"{name}.safetensors" for name in DIALECTS}
    for name, file in files.items():
        convert(start, file, dialect=name)
    for first, second in product(DIALECTS, DIALECTS):
        done = convert(files[first], tmp_path / "end.safetensors", dialect=second)
        assert done.error < 1e-6 and done.dialect == second
        assert inspect(tmp_path / "end.safetensors").canonical_hash == expected, (first, second)


def test_truncation_errors_are_those_of_the_dense_updates(tmp_path: Path) -> None:
    source = save(adapter("sd15"), tmp_path / "a.safetensors", dialect="kohya")
    done = convert(source, tmp_path / "b.safetensors", rank=2)
    old, new = load(source), load(tmp_path / "b.safetensors")
    missed = total = 0.0
    for row in done.layers:
        before, after = old.layers[row.path].delta(torch.float64), new.layers[row.path].delta(torch.float64)
        best = torch.linalg.svdvals(before)[2:].norm() / before.norm()
        assert row.error == pytest.approx(float((before - after).norm() / before.norm()), rel=1e-6)
        assert row.error == pytest.approx(float(best), rel=1e-5)
        assert (row.rank_before, row.rank_after) == (4, 2)
        missed, total = missed + float((before - after).norm()) ** 2, total + float(before.norm()) ** 2
    assert done.error == pytest.approx((missed / total) ** 0.5, rel=1e-6)


def test_rounding_is_part_of_the_error_and_an_exact_copy_has_none(tmp_path: Path) -> None:
    source = save(adapter("sd15"), tmp_path / "a.safetensors")
    half = convert(source, tmp_path / "b.safetensors", dtype=torch.float16)
    assert 1e-5 < half.error < 1e-3
    same = convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert same.error == 0 and all(row.error == 0 for row in same.layers)
    assert hashes(tmp_path / "b.safetensors")["autov3"] == hashes(tmp_path / "c.safetensors")["autov3"]


def test_in_place_and_refusals(tmp_path: Path) -> None:
    path = save(adapter("sd15"), tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="at least rank 1"):
        convert(path, path, rank=0)
    with pytest.raises(UsageError, match="cannot be written"):
        convert(path, tmp_path / "no" / "b.safetensors")
    assert path.read_bytes() == before
    assert convert(path, path, dialect="peft").error < 1e-6
    assert inspect(path).dialect == "peft"


def test_losses_need_consent_and_are_listed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.diff": torch.randn(320, 320), f"{name}.diff_b": torch.ones(320)}, path)
    out = tmp_path / "b.safetensors"
    with pytest.raises(PartialLoadError, match="a change of a bias"):
        convert(path, out)
    assert not out.exists()
    done = convert(path, out, allow_partial=True)
    assert done.left_out.keys() == {f"{name}.diff_b"}
    assert 0 < done.approximated[name] < 0.2 and done.error < 1e-6


CHILD = """
import sys, torch
from pathlib import Path
from loracomp.formats import convert
a, b, target = map(Path, sys.argv[1:])
print("ready", flush=True)
while True:
    convert(a, target)
    convert(b, target)
"""


def test_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    first = save(adapter("sd15"), tmp_path / "a.safetensors")
    second = save(adapter("sd15").scaled(2.0), tmp_path / "b.safetensors")
    target = tmp_path / "out" / "t.safetensors"
    target.parent.mkdir()
    allowed = set()
    for source in (first, second):
        convert(source, target)
        allowed.add(target.read_bytes())
    assert len(allowed) == 2
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for delay in (0.06, 0.15):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(first), str(second), str(target)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for _ in range(10):
            time.sleep(delay / 10)
            assert target.read_bytes() in allowed
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert target.read_bytes() in allowed


def test_small_approximations_need_no_consent_and_are_listed_too(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(320, 8, generator=generator) @ torch.randn(8, 320, generator=generator)
    rest = torch.randn(320, 320, generator=generator)
    dense = left + rest * (5e-3 * left.norm() / rest.norm())
    save_file({"lora_unet_" + name.removeprefix("unet.").replace(".", "_") + ".diff": dense}, source)
    done = convert(source, target)
    missed = float((load(target).layers[name].delta() - dense).norm() / dense.norm())
    assert 1e-6 < missed < 5e-3 and list(done.approximated.values()) == [pytest.approx(missed, rel=1e-3)]
