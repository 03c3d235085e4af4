"""Runs of many adapters: broken off and resumed, with failures, with memory counted, compiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from manifests import distance, loaded, stop_after
from tiny import tiny_pipeline

from loracomp.errors import ResourceError, TrainingError, UsageError
from loracomp.training.interrupt import InterruptedManyError
from loracomp.training.many import engine, memory, state
from loracomp.training.many.run import Ways, train_many

Write = Callable[..., Path]
LOSSY = {"flip": True, "caption_dropout": 0.3, "noise_offset": 0.1}


def _digests(out: Path, pipe: Any) -> dict[str, str]:
    return {name: adapter.digest for name, adapter in loaded(out, pipe).items()}


def test_ten_steps_equal_five_and_five(
    write: Write, tmp_path: Path, sd15: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three adapters on two seats, one of which waits; bit for bit, and the report's losses too."""
    monkeypatch.setattr(engine, "CHECK", 3)
    manifest = write({**LOSSY, "steps": 6}, {**LOSSY, "steps": 3, "rank": 3, "alpha": 1.0}, {**LOSSY})
    straight = train_many(manifest, tmp_path / "straight", Ways(at_once=2), pipe=sd15)
    out = tmp_path / "broken"
    with pytest.raises(InterruptedManyError, match="0 of 3 adapters done, saved") as caught:
        train_many(manifest, out, Ways(at_once=2, stop=stop_after(2)), pipe=sd15)
    assert caught.value.exit_code == 130
    with pytest.raises(InterruptedManyError, match="1 of 3 adapters done"):
        train_many(manifest, out, Ways(stop=stop_after(2)), pipe=sd15)
    torch.manual_seed(5)
    resumed = train_many(manifest, out, Ways(), pipe=sd15)
    assert _digests(out, sd15) == _digests(tmp_path / "straight", sd15)
    assert resumed["adapters"]["a2"]["loss"] == straight["adapters"]["a2"]["loss"]
    assert resumed["adapters"]["a1"]["status"] == "kept"
    assert not state.state_path(out).exists()
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    again = train_many(manifest, out, pipe=sd15)
    assert again["done"] == 3
    assert {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")} == before


def test_a_checkpoint_is_written_when_an_adapter_asks_for_it(write: Write, tmp_path: Path, sd15: Any) -> None:
    events: list[Any] = []
    manifest = write({"steps": 3, "checkpoint_every": 2}, {"steps": 3})
    train_many(manifest, tmp_path / "many", Ways(report=events.append), pipe=sd15)
    assert [event["event"] for event in events].count("checkpoint") == 1
    assert events[-1]["step"] == events[-1]["steps"] == 6


def test_one_adapter_that_diverges_ends_alone(
    write: Write, tmp_path: Path, sd15: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are bit for bit those of a run without it; its seat goes to the next."""
    monkeypatch.setattr(engine, "CHECK", 2)
    bad = {"name": "bad", "lr": 1e30, "warmup": 0, "steps": 50, "data": "one"}
    rows = [{"name": name, "data": "two", "seed": seed} for seed, name in enumerate("pqr")]
    clean = train_many(write(*rows), tmp_path / "clean", Ways(at_once=2), pipe=sd15)
    events: list[Any] = []
    ways = Ways(at_once=2, report=events.append)
    found = train_many(write(rows[0], bad, *rows[1:]), tmp_path / "with", ways, pipe=sd15)
    assert clean["failed"] == 0
    assert (found["done"], found["failed"]) == (3, 1)
    reason = found["adapters"]["bad"]["reason"]
    assert "many.jsonl, line 2 (bad): loss or gradient not finite at step 2 of 50; lower lr" in reason
    assert any(event["event"] == "failed" and event["name"] == "bad" for event in events)
    assert _digests(tmp_path / "with", sd15) == _digests(tmp_path / "clean", sd15)


def test_what_changed_since_an_interruption_is_refused(write: Write, tmp_path: Path, sd15: Any) -> None:
    out = tmp_path / "many"
    with pytest.raises(InterruptedManyError):
        train_many(write({}, {}), out, Ways(stop=stop_after(1)), pipe=sd15)
    with pytest.raises(TrainingError, match="base, manifest or data changed since"):
        train_many(write({}, {"lr": 0.5}), out, pipe=sd15)
    with pytest.raises(TrainingError, match="base, manifest or data changed since"):
        train_many(write({}, {}), out, pipe=tiny_pipeline("sd15", seed=3))
    whole = state.state_path(out).read_bytes()
    state.state_path(out).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match="damaged"):
        train_many(write({}, {}), out, pipe=sd15)
    state.state_path(out).unlink()
    assert train_many(write({}, {}), out, pipe=sd15)["done"] == 2
    with pytest.raises(TrainingError, match=r"a1\.safetensors: there already, trained with other settings"):
        train_many(write({}, {"lr": 0.5}), out, pipe=sd15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ('{"name": "a", "data": "one", "kind": "style"', r"many.jsonl, line 1: not JSON"),
        ("[1]", r"row 1: not an object"),
        ('{"name": "a", "kind": "style"}', r"line 1 \(a\): data: needed"),
        ('{"name": "a", "data": "one", "kind": "style", "rnak": 3}', r"line 1 \(a\): unknown .*mean rank"),
        ('{"name": "a", "data": "one", "kind": "style", "rank": 0}', r"line 1 \(a\): rank: .*got 0"),
        ('\n{"data": "one", "kind": "style"}', r"line 2: name: needed"),
        ('{"name": "a", "data": "three", "kind": "style"}', r"line 1 \(a\): data: .*no such folder"),
        ('{"name": "a", "data": "one", "kind": "style", "targets": "x"}', r"line 1 \(a\): targets x"),
    ],
)  # fmt: skip
def test_errors_name_row_and_field(text: str, message: str, write: Write, tmp_path: Path, sd15: Any) -> None:
    path = write({})
    path.write_text(text)
    with pytest.raises((UsageError, TrainingError), match=message):
        train_many(path, tmp_path / "out", pipe=sd15)


def test_rows_share_name_space_base_and_precision(write: Write, tmp_path: Path, sd15: Any) -> None:
    for rows, message in [
        (({"name": "x"}, {"name": "X"}), "name: that of .*line 1"),
        (({}, {"base": "sdxl"}), "base: 'sdxl', but the first row has 'sd15'"),
        (({}, {"precision": "bf16"}), "precision: 'bf16', but the first row has 'fp32'"),
    ]:
        with pytest.raises(UsageError, match=message):
            train_many(write(*rows), tmp_path / "out", pipe=sd15)
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([json.loads(line) for line in write({"steps": 1}).read_text().splitlines()]))
    assert train_many(listed, tmp_path / "out", pipe=sd15)["done"] == 1


def test_sample_grids_are_drawn_for_rows_that_ask(write: Write, tmp_path: Path, sd15: Any) -> None:
    from PIL import Image

    asked = {"sample_count": 1, "sample_steps": 1, "sample_prompts": ["a circle"], "steps": 2, "lr": 0.3}
    train_many(write(asked, {"steps": 1}), tmp_path / "out", pipe=sd15)
    assert [file.name for file in (tmp_path / "out").glob("*.png")] == ["a0.png"]
    with Image.open(tmp_path / "out" / "a0.png") as grid:
        assert grid.size == (68, 32)


def test_memory_is_counted_from_what_is_kept(write: Write, tmp_path: Path, sd15: Any) -> None:
    """States are four numbers a parameter; everything a seat takes is proportional to the seats."""
    counted = [
        train_many(write(*[{"steps": 1}] * seats), tmp_path / str(seats), pipe=sd15)["memory"]
        for seats in (1, 3)
    ]
    adapter = loaded(tmp_path / "1", sd15)["a0"]
    numbers = sum(layer.down.numel() + layer.up.numel() for layer in adapter.layers.values())
    assert counted[0]["states"] == 4 * 4 * numbers
    for part in ("states", "activations"):
        assert counted[1][part] == 3 * counted[0][part] > 0
    parts = [part for part in sd15.components.values() if isinstance(part, torch.nn.Module)]
    size = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    assert size <= counted[0]["base"] <= size + 4096
    assert counted[0]["total"] == sum(v for key, v in counted[0].items() if key != "total")


def test_the_number_at_once_follows_the_memory() -> None:
    budget = memory.Budget(base=1000, data=500, states=40, activations=60)
    assert budget.seats(free=1000, members=50, device="cuda") == int(1000 * memory.SHARE) // 100
    assert budget.seats(free=10**9, members=50, device="cuda") == 50
    assert budget.seats(free=10**9, members=5000, device="cuda") == memory.ENOUGH["cuda"]
    with pytest.raises(ResourceError, match="lower batch or rank"):
        budget.seats(free=90, members=5, device="cuda")


def test_a_compiled_step_gives_the_same_without_compiling_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph without breaks serves every step, whoever sits where."""
    pipe = tiny_pipeline("flux")
    compile_model, graphs = torch.compile, []

    def traced(model: Any, **options: Any) -> Any:
        assert options == {"dynamic": False}

        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        return compile_model(model, backend=backend, fullgraph=True, dynamic=False)

    manifest = write({"steps": 3}, {"steps": 2, "targets": ["to_q"]}, {"rank": 3, "steps": 2}, base="flux")
    train_many(manifest, tmp_path / "plain", Ways(at_once=2), pipe=pipe)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", traced)
    train_many(manifest, tmp_path / "compiled", Ways(at_once=2, compile=True), pipe=pipe)
    assert len(graphs) == 1
    plain, compiled = loaded(tmp_path / "plain", pipe), loaded(tmp_path / "compiled", pipe)
    assert all(distance(compiled[name], plain[name]) < 1e-4 for name in plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph")
def test_a_recorded_step_gives_the_same(write: Write, tmp_path: Path) -> None:
    pipe = tiny_pipeline("sd15").to("cuda")
    manifest = write({"steps": 4}, {"steps": 3, "rank": 3}, {"steps": 3, "accumulation": 2})
    for name, graph in (("plain", False), ("graph", True)):
        train_many(manifest, tmp_path / name, Ways(at_once=2, graph=graph), pipe=pipe)
    plain, graph = loaded(tmp_path / "plain", pipe), loaded(tmp_path / "graph", pipe)
    assert len(plain) == 3
    assert all(distance(graph[name], plain[name]) < 1e-3 for name in plain)
