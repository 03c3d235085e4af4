"""A folder of adapters: all cores, progress, a summary, and Ctrl-C at any time."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loracomp.adapter import Adapter
from loracomp.bases import modules
from loracomp.errors import ResourceError
from loracomp.formats import Diagnosis, diagnose, doctor, load, save
from loracomp.lowrank import LowRank

COMMAND = (sys.executable, "-m", "loracomp", "doctor")


def adapter(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    paths = [path for path in modules("sd15") if path.endswith(".to_q")][:3]
    layers = {
        path: LowRank(
            torch.randn((2, modules("sd15")[path][1]), generator=generator),
            torch.randn((modules("sd15")[path][0], 2), generator=generator),
            1.0,
        )
        for path in paths
    }
    return Adapter(layers, "sd15", "a")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine files: two dialects of one adapter, one that lacks a tensor's place, one pickle, five others."""
    for index in range(6):
        save(adapter(index), tmp_path / f"{index}.safetensors")
    save(adapter(0), tmp_path / "again.safetensors", dialect="diffusers", dtype=torch.float16)
    save_file(
        load_file(tmp_path / "5.safetensors") | {"lora_unet_x.alpha": torch.tensor(1.0)},
        tmp_path / "part.safetensors",
    )
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x02 pickle")
    return tmp_path


def test_a_folder_is_told_in_a_line_for_each_file_and_a_summary(folder: Path) -> None:
    done = subprocess.run((*COMMAND, str(folder)), capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    lines = done.stdout.splitlines()
    files = [line for line in lines if line[:1] in "✓!✗"]
    assert len(files) == 9 and sum(line.startswith("✓") for line in files) == 7
    assert any("error: 1 tensor left out: no such module in sd15 (lora_unet_x.alpha)" in x for x in lines)
    assert any(re.fullmatch(r"✗ .*pickle\.safetensors: is a pickle checkpoint.*", line) for line in files)
    same = [line for line in lines if line.startswith("the same adapter: ")]
    assert [[Path(f).name for f in line.split(": ")[1].split(", ")] for line in same] == [
        ["0.safetensors", "again.safetensors"],
        ["5.safetensors", "part.safetensors"],
    ]
    assert lines[-1].startswith("9 files: 7 whole and right, 1 not whole, 1 unreadable, 4 more than once; ")
    assert "Traceback" not in done.stderr


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in text.read_text().split()] if text.exists() else []


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked about does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupt_ends_all_processes_with_one_line(folder: Path) -> None:
    for index in range(400):
        os.link(folder / "0.safetensors", folder / f"link{index}.safetensors")
    command = (*COMMAND, str(folder), "--jobs", "2")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while len(started := children(process.pid)) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it was interrupted"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal sends: to every process of the group
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert err.strip() == "loracomp: interrupted"
    assert len(started) >= 3
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, started))


HELD = """
import os, signal, threading, time
from loracomp.formats.doctor import _interrupts_held
older = threading.Thread(target=time.sleep, args=(1,), daemon=True)
older.start()
done = []
try:
    with _interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        done.append("all started")
except KeyboardInterrupt:
    print(done, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_ctrl_c_waits_for_all_processes_to_start_whichever_thread_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert done.stdout == "['all started'] True\n"


def killed(file: str, **options: object) -> Diagnosis:
    if file.endswith("3.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    return diagnose(file)


def test_a_killed_process_is_an_error_of_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["loracomp.formats.doctor"], "diagnose", killed)
    with pytest.raises(ResourceError, match=r"a process was killed after \d of 9 files.*--jobs"):
        doctor([folder], jobs=2)


def test_diagnoses_from_other_processes_are_small(folder: Path) -> None:
    first, second = (pickle.loads(pickle.dumps(diagnose(folder / "0.safetensors"))) for _ in range(2))
    assert first == second == doctor([folder / "0.safetensors"]).diagnoses[0]
    assert first.report and second.report
    for row, other in zip(first.report.rows, second.report.rows, strict=True):
        assert row.path is other.path and row.shape is other.shape
    assert load(folder / "0.safetensors").layers.keys() == {row.path for row in first.report.rows}
