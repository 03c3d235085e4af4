"""Small files read side by side have the features that each has alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from known_adapters import adapter, bank
from safetensors.torch import load_file, save_file

from loracomp.errors import FormatError
from loracomp.formats import DIALECTS, save
from loracomp.formats.matching import match
from loracomp.formats.source import Source
from loracomp.retrieval.encoding import Encoded, encode_file, encode_files
from loracomp.retrieval.features import Features
from loracomp.retrieval.sites import site_table
from loracomp.retrieval.stacks import Plan, plan_of

TABLE = site_table("glyph")
BANK = {"glyph": bank()}


def plan(path: Path) -> Plan | None:
    with Source(path) as source:
        return plan_of(source, match(source), TABLE)


def alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """A file read layer by layer."""
    with monkeypatch.context() as patch:
        patch.setattr("loracomp.retrieval.encoding.plan_of", lambda *parts: None)
        return encode_file(path, banks=BANK)


def same(first: Features, second: Features) -> None:
    assert torch.equal(first.present, second.present)
    for name in ("spectra", "sketch", "out", "into", "whole"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=2e-3, atol=2e-4)
    assert first.text is not None
    assert second.text is not None
    for name in ("energy", "pull"):
        torch.testing.assert_close(
            getattr(first.text, name), getattr(second.text, name), rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_side_by_side_is_one_by_one(
    dtype: torch.dtype, dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in range(5)]
    for seed, file in enumerate(files):
        save(adapter(seed, rank=4 + 2 * (seed == 3)), file, dialect=dialect)
        save_file(
            {key: value.to(dtype) for key, value in load_file(file).items()}, file, {"title": "x" * seed}
        )
    assert all(plan(file) is not None for file in files)
    assert plan(files[0]) is plan(files[1])
    for file, found in zip(files, encode_files(files, banks=BANK), strict=True):
        assert isinstance(found, Encoded)
        expected = alone(file, monkeypatch)
        assert found.facts == expected.facts
        same(found.features, expected.features)


def test_a_broken_file_spoils_no_other(tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in range(6)]
    for seed, file in enumerate(files):
        save(adapter(seed), file, dialect="kohya")
    broken = {1: float("nan"), 2: 3e38, 3: 0.0}
    for seed, value in broken.items():
        values = load_file(files[seed])
        ends = ("lora_up.weight", "lora_B.weight")
        save_file({k: v * 0 + value if k.endswith(ends) else v for k, v in values.items()}, files[seed])
    values = load_file(files[4])
    changed = {k: v * float("nan") if k.endswith("alpha") else v for k, v in values.items()}
    save_file(changed, files[4])
    found = encode_files([*files, tmp_path / "missing.safetensors"], banks=BANK)
    assert isinstance(found[0], Encoded)
    assert isinstance(found[5], Encoded)
    messages = [str(one) for one in found]
    assert "holds NaN or infinite values" in messages[1]
    assert "too large to be multiplied" in messages[2]
    assert "changes nothing" in messages[3]
    assert "alpha' holds NaN" in messages[4]
    assert "no such file" in messages[6]
    with pytest.raises(FormatError, match="changes nothing"):
        encode_file(files[3])


def test_what_is_not_plain_is_read_layer_by_layer(tmp_path: Path) -> None:
    save(adapter(0), tmp_path / "plain.safetensors", dialect="kohya")
    values = load_file(tmp_path / "plain.safetensors")
    up = next(key for key in values if key.endswith("lora_up.weight"))
    layer = up.removesuffix("lora_up.weight")
    odd = {
        "magnitude": values
        | {up.replace("lora_up.weight", "dora_scale"): torch.ones(values[up].shape[0], 1)},
        "two types": values | {up: values[up].half()},
        "one alpha less": {k: v for k, v in values.items() if k != f"{layer}alpha"},
    }
    assert plan(tmp_path / "plain.safetensors") is not None
    for name, tensors in odd.items():
        file = tmp_path / f"{name}.safetensors"
        save_file(tensors, file)
        assert plan(file) is None, name
        assert isinstance(encode_file(file, banks=BANK), Encoded)


def test_what_peft_says_beside_its_file_is_read_for_each(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, alpha in zip(folders, (4, 8), strict=True):
        folder.mkdir()
        save(adapter(0, rank=4), folder / "adapter_model.safetensors", dialect="peft")
        values = load_file(folder / "adapter_model.safetensors")
        save_file(values, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(f'{{"r": 4, "lora_alpha": {alpha}}}')
    first, second = encode_files([folder / "adapter_model.safetensors" for folder in folders])
    assert isinstance(first, Encoded)
    assert isinstance(second, Encoded)
    torch.testing.assert_close(second.features.whole, 2 * first.features.whole)
