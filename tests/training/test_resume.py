"""Interrupted and resumed runs equal runs without a break, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from loracomp.errors import TrainingError, UsageError
from loracomp.training import checkpoint
from loracomp.training.config import TrainConfig
from loracomp.training.interrupt import InterruptedRunError, ctrl_c
from loracomp.training.run import resume, train

Make = Callable[..., TrainConfig]


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks to stop at the end of the given step."""
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= steps


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any) -> Path:
    """The output of a run of 6 steps that stopped after 3, on an SD1.5 model."""
    return _interrupt(folder, tmp_path, tiny_config, sd15)


def _interrupt(folder: Path, tmp_path: Path, make: Make, pipe: Any) -> Path:
    out = tmp_path / "ink.safetensors"
    with pytest.raises(InterruptedRunError, match="stopped after step 3 of 6") as caught:
        train(_config(make), folder, out, pipe=pipe, stop=stop_after(3))
    assert caught.value.exit_code == 130
    assert not out.exists()
    return out


def _config(make: Make, **values: Any) -> TrainConfig:
    return make(**({"steps": 6, "flip": True, "caption_dropout": 0.3, "noise_offset": 0.1} | values))


def test_six_steps_equal_three_and_three(folder: Path, tmp_path: Path, tiny_config: Make, pipe: Any) -> None:
    interrupted = _interrupt(folder, tmp_path, tiny_config, pipe)
    straight = train(_config(tiny_config), folder, tmp_path / "straight.safetensors", pipe=pipe)
    torch.manual_seed(99)
    resumed = resume(interrupted, pipe=pipe)
    assert resumed.adapter.digest == straight.adapter.digest
    assert resumed.loss == straight.loss
    assert not checkpoint.state_path(interrupted).parent.exists()


def test_every_break_gives_the_same_weights(
    folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any
) -> None:
    config = _config(tiny_config, steps=4, accumulation=2)
    straight = train(config, folder, tmp_path / "straight.safetensors", pipe=sd15)
    out = tmp_path / "ink.safetensors"
    with pytest.raises(InterruptedRunError):
        train(config, folder, out, pipe=sd15, stop=stop_after(1))
    for _ in range(2):
        with pytest.raises(InterruptedRunError):
            resume(out, pipe=sd15, stop=stop_after(1))
    assert resume(out, pipe=sd15).adapter.digest == straight.adapter.digest


def test_changed_data_is_refused_and_moved_data_is_not(interrupted: Path, folder: Path, sd15: Any) -> None:
    moved = folder.rename(folder.parent / "elsewhere")
    with pytest.raises(TrainingError, match="no such folder"):
        resume(interrupted, pipe=sd15)
    Image.new("RGB", (32, 32)).save(moved / "9.png")
    with pytest.raises(TrainingError, match="changed since the run began"):
        resume(interrupted, data=moved, pipe=sd15)
    (moved / "9.png").unlink()
    assert resume(interrupted, data=moved, pipe=sd15).out.exists()


def test_another_base_is_refused(interrupted: Path) -> None:
    other = tiny_pipeline("sd15", seed=5)
    with pytest.raises(TrainingError, match="not the weights that the run began with"):
        resume(interrupted, pipe=other)


def test_a_new_run_does_not_overwrite_a_waiting_one(
    interrupted: Path, folder: Path, tiny_config: Make
) -> None:
    with pytest.raises(UsageError, match="train resume"):
        train(tiny_config(), folder, interrupted, pipe=object())


def test_damaged_checkpoints_are_named(interrupted: Path) -> None:
    path = checkpoint.state_path(interrupted)
    whole = path.read_bytes()
    for broken in (whole[:100], b"", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(TrainingError, match="damaged checkpoint"):
            resume(interrupted, pipe=object())
    with pytest.raises(TrainingError, match="no such checkpoint"):
        resume(interrupted.with_name("none.safetensors"))


def test_a_crash_while_saving_keeps_the_state_before(
    folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ink.safetensors"
    config = tiny_config(steps=6, checkpoint_every=2)
    saves, sync = [], os.fsync

    def crash(handle: int) -> None:
        saves.append(handle)
        if len(saves) == 2:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(checkpoint.os, "fsync", crash)
    with pytest.raises(TrainingError, match="No space left"):
        train(config, folder, out, pipe=sd15)
    assert checkpoint.read_progress(out).step == 2
    monkeypatch.undo()
    monkeypatch.setenv("LORACOMP_CACHE", "")
    straight = train(config, folder, tmp_path / "straight.safetensors", pipe=sd15)
    assert resume(out, pipe=sd15).adapter.digest == straight.adapter.digest


def test_ctrl_c_once_asks_and_twice_insists() -> None:
    class InsistedError(Exception):
        pass

    def insist(*_: object) -> None:
        raise InsistedError

    before = signal.signal(signal.SIGINT, insist)
    told: list[int] = []
    try:
        with ctrl_c(lambda: told.append(1)) as pressed:
            assert not pressed()
            os.kill(os.getpid(), signal.SIGINT)
            assert pressed()
            with pytest.raises(InsistedError):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is insist
        assert told == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_checkpoint_holds_no_pickle(interrupted: Path) -> None:
    data = checkpoint.state_path(interrupted).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    kinds = {name.split("/", 1)[0] for name in header if name != "__metadata__"}
    assert kinds == {"weight", "exp_avg", "exp_avg_sq"}
    assert json.loads(header["__metadata__"][checkpoint.KEY])["step"] == 3
