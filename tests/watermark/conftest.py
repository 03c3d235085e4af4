"""Fixtures of the tests of ``loracomp watermark``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import Outcome, Run
from markcli import SEEN, SHAPE, noise
from tiny import tiny_pipeline

from loracomp.watermark.calibration import joined
from loracomp.watermark.codec import Codec
from loracomp.watermark.screening import with_acceptance


@pytest.fixture(autouse=True)
def _no_user_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACOMP_CACHE", "")


@pytest.fixture
def loracomp(loracomp: Run) -> Run:
    """Runs ``loracomp ARGUMENTS…`` and keeps what it printed."""

    def run(*arguments: object) -> Outcome:
        done = loracomp(*arguments)
        SEEN.append(done.out + done.err)
        return done

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a codec, a calibration, an owner's key and an issued key."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("marks")
    codec = Codec.fresh(SHAPE, "sd15").to("cpu")
    codec.save(folder / "codec.safetensors")
    rows = torch.cat([codec.read(noise(1, seed)) for seed in range(600)])
    half = torch.arange(300)
    parts = [("real", rows[:300], half), ("base", rows[300:], half)]
    calibration = with_acceptance(joined(parts, "sd15", codec.digest), 50)
    calibration.save(folder / "calibration.safetensors")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline("sd15").save_pretrained(folder)
    return folder
