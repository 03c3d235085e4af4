"""Whole runs on tiny models of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import KINDS, layer_table, run, tiny_pipeline

from loracomp import attach, detach, formats
from loracomp.errors import ResourceError, TrainingError, UsageError
from loracomp.pipeline import denoiser_of
from loracomp.training import loop, schedule
from loracomp.training.config import TrainConfig, load_dump
from loracomp.training.dataset import read_dataset
from loracomp.training.objective import Objective
from loracomp.training.run import train
from loracomp.training.session import Session

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize("text", [False, True])
def test_the_file_does_what_the_trained_layers_did(
    pipe: Any, folder: Path, tmp_path: Path, tiny_config: Make, monkeypatch: pytest.MonkeyPatch, text: bool
) -> None:
    """Training, saving, loading and attaching give the pictures of PEFT's own layers."""
    before, live = run(pipe), []
    finish = Session._finish
    monkeypatch.setattr(Session, "_finish", lambda *a: (live.append(run(pipe)), finish(*a))[1])
    config = tiny_config(trigger="ink style", train_text_encoder=text, lr=0.05)
    result = train(config, folder, tmp_path / "ink.safetensors", pipe=pipe)
    assert torch.equal(run(pipe), before)
    adapter = formats.load(result.out, modules=layer_table(pipe))
    assert (len(adapter.components) > 1) is text
    attach(pipe, [adapter])
    attached = run(pipe)
    detach(pipe)
    assert float((live[0] - before).abs().max()) > 1e-3
    torch.testing.assert_close(attached, live[0], atol=2e-4, rtol=2e-4)


def test_the_loss_of_a_batch_falls_when_it_is_seen_again(
    pipe: Any, folder: Path, tmp_path: Path, tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[float] = []
    measure, first_draw = Objective.loss, loop.draw_of

    def listen(objective: Objective, batch: Any) -> torch.Tensor:
        value = measure(objective, batch)
        values.append(float(value.detach()))
        return value

    monkeypatch.setattr(Objective, "loss", listen)
    monkeypatch.setattr(loop, "draw_of", lambda config, step, *rest: first_draw(config, 0, *rest))
    config = tiny_config(steps=12, batch=4, lr=0.02, rank=4, schedule="constant")
    train(config, folder, tmp_path / "ink.safetensors", pipe=pipe)
    assert len(values) == 12
    assert values[-1] < 0.97 * values[0]


def test_the_header_tells_how_it_was_made(folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any) -> None:
    rows = [{"file": f"{n}.png", "subject": f"circle-{n % 2}", "style": "ink"} for n in range(4)]
    (folder / "manifest.json").write_text(json.dumps(rows))
    config = tiny_config(trigger="ink style, sumi", seed=7, steps=2)
    out = train(config, folder, tmp_path / "ink.safetensors", pipe=sd15).out
    adapter = formats.load(out, modules=layer_table(sd15))
    header, data = adapter.metadata, read_dataset(folder)
    manifest = json.loads(header["loracomp.data"])
    assert manifest["pictures"] == sorted(p.digest[:32] for p in data.pictures)
    assert manifest["cells"] == [["circle-0", "ink"], ["circle-1", "ink"]]
    assert manifest["fingerprint"] == data.fingerprint
    assert adapter.trigger_words == ("ink style", "sumi")
    assert load_dump(header["loracomp.config"]).seed == 7
    assert json.loads(header["ss_tag_frequency"])["data"]["ink style"] == 4
    expected = {"ss_steps": "2", "ss_seed": "7", "ss_num_train_images": "4", "ss_output_name": "ink"}
    assert {key: header[key] for key in expected} == expected
    assert header["ss_network_dim"] == "2"
    assert header["modelspec.title"] == "ink"


def test_samples_show_the_base_and_the_adapter(
    folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any
) -> None:
    config = tiny_config(sample_count=2, sample_steps=1, sample_prompts=["a", "b", "c"], lr=0.1)
    result = train(config, folder, tmp_path / "ink.safetensors", pipe=sd15)
    assert result.grid is not None
    with Image.open(result.grid) as sheet:
        assert sheet.size == (3 * 32 + 2 * 4, 3 * 32 + 2 * 4)
        cells = [sheet.crop((x * 36, 0, x * 36 + 32, 32)).tobytes() for x in range(3)]
    assert len(set(cells)) == 3


def test_same_seed_same_weights_and_another_seed_others(
    folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any
) -> None:
    digests = []
    for index, seed in enumerate((3, 3, 4)):
        torch.manual_seed(index)
        out = tmp_path / f"{index}.safetensors"
        digests.append(train(tiny_config(seed=seed), folder, out, pipe=sd15).adapter.digest)
    assert digests[0] == digests[1] != digests[2]


def test_accumulation_equals_the_larger_batch(
    folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any
) -> None:
    """With the same samples, two halves of a batch give the gradient of the whole one."""
    whole = schedule.draw

    def halves(seed: int, position: int, batch: int, *rest: Any) -> Any:
        both = whole(seed, position // 4 * 4, 4, *rest)
        start = position % 4
        return type(both)(**{key: value[start : start + batch] for key, value in vars(both).items()})

    one = train(tiny_config(batch=4, steps=2), folder, tmp_path / "1.safetensors", pipe=sd15).adapter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "draw", halves)
        config = tiny_config(batch=2, accumulation=2, steps=2)
        two = train(config, folder, tmp_path / "2.safetensors", pipe=sd15).adapter
    for path, layer in one.layers.items():
        torch.testing.assert_close(two.layers[path].up, layer.up, atol=2e-3, rtol=2e-2)


def test_a_diverging_run_ends_with_advice(folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any) -> None:
    with pytest.raises(TrainingError, match=r"lower lr|not finite"):
        train(tiny_config(lr=1e30, warmup=0), folder, tmp_path / "ink.safetensors", pipe=sd15)
    assert not (tmp_path / "ink.safetensors").exists()


def test_outputs_that_cannot_be_written(folder: Path, tmp_path: Path, tiny_config: Make) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "ink.ckpt", tmp_path / "file" / "ink.safetensors"):
        with pytest.raises(UsageError, match=r"must end in|cannot be written"):
            train(tiny_config(), folder, out, pipe=object())


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_weights_train_in_fp32_layers(
    kind: str, folder: Path, tmp_path: Path, tiny_config: Make
) -> None:
    half = tiny_pipeline(kind).to(torch.bfloat16)
    notes: list[str] = []

    def report(event: Any) -> None:
        notes.append(event.get("precision", ""))

    config = tiny_config(precision="bf16", steps=2, sample_count=1, sample_steps=1, sample_prompts=["a"])
    result = train(config, folder, tmp_path / "ink.safetensors", pipe=half, report=report)
    assert "bf16" in notes
    assert all(layer.up.dtype == torch.float32 for layer in result.adapter.layers.values())
    weights = next(iter(result.adapter.layers.values())).down
    assert not torch.equal(weights, weights.to(torch.bfloat16).float())


def test_gradient_checkpointing_changes_nothing_but_memory(
    pipe: Any, folder: Path, tmp_path: Path, tiny_config: Make
) -> None:
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        model = denoiser_of(pipe)[1]
        enable = model.enable_gradient_checkpointing
        patch.setattr(model, "enable_gradient_checkpointing", lambda: (calls.append(1), enable()))
        runs = [
            train(
                tiny_config(steps=2, gradient_checkpointing=on),
                folder,
                tmp_path / f"{on}.safetensors",
                pipe=pipe,
            )
            for on in (False, True)
        ]
    assert calls == [1]
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    for path, layer in runs[0].adapter.layers.items():
        torch.testing.assert_close(runs[1].adapter.layers[path].up, layer.up, atol=1e-4, rtol=1e-3)


def test_out_of_memory_is_one_line(
    sd15: Any, folder: Path, tmp_path: Path, tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Objective, "loss", exhausted)
    with pytest.raises(ResourceError, match="out of memory at batch 2; lower batch"):
        train(tiny_config(), folder, tmp_path / "ink.safetensors", pipe=sd15)
