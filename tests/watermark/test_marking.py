"""Marked training on tiny pipelines: laws of the shift, of the layers' hooks, of whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import markworlds as worlds
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import layer_table, random_adapter, run, shapes_of, tiny_pipeline

from loracomp import formats
from loracomp.errors import TrainingError, UnknownNameError, UsageError
from loracomp.training.config import make_config
from loracomp.training.interrupt import InterruptedRunError
from loracomp.training.run import train
from loracomp.training.schedule import draw_of
from loracomp.training.watermark import shift
from loracomp.training.watermark.objective import Keyed
from loracomp.training.watermark.run import embed, train_marked, twin_path
from loracomp.training.watermark.settings import MarkSettings, mark_settings
from loracomp.watermark.codec import Codec
from loracomp.watermark.manifest import check_file
from loracomp.watermark.networks import Shape
from loracomp.watermark.signing import public_key

KEY = worlds.key(bits=8)
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline("sd15")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    for index in range(4):
        image = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(image).ellipse((4, 4 + index, 20 + 2 * index, 28), fill=(60 * index, 40, 200))
        image.save(place / f"{index}.png")
        (place / f"{index}.txt").write_text(f"a circle of size {index}, ink style\n")
    return place


def codec(carriers: str = "keyed") -> Codec:
    torch.manual_seed(0)
    shape = Shape(4, 16, 32, 8, widths=(8, 8), blocks=(1, 1), bits=8, carriers=carriers)
    return Codec.fresh(shape, "tiny", 0.5).to("cpu")


def config(**values: Any) -> Any:
    small = {
        "name": "ink", "kind": "style", "base": "sd15", "steps": 3, "batch": 2, "accumulation": 1, "rank": 2,
        "resolution": 32, "lr": 1e-2, "sample_count": 0, "saved_as": "fp32", "sample_steps": 2,
        "trigger": "ink style", "targets": list(TARGETS),
    }  # fmt: skip
    return make_config(small | values)


def settings(**values: Any) -> MarkSettings:
    return MarkSettings(**{"steps": 3, "rank": 2, "batch": 2, "pictures": 4, **values})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_predictions_and_clean_latents_tell_the_same(kind: Any) -> None:
    z, noise = torch.randn(2, 3, 4, 4, 4, generator=worlds.source(0))
    b = torch.tensor([0.2, 0.6, 0.9])
    a = 1 - b if kind == "flow" else (1 - b * b).sqrt()
    noisy = a[:, None, None, None] * z + b[:, None, None, None] * noise
    native = shift.native_target(z, noise, a, b, kind)
    torch.testing.assert_close(shift.clean_of(native, noisy, a, b, kind), z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_a_marked_picture_at_the_same_noise_is_the_fixed_point(kind: Any) -> None:
    """What is asked for at shifted latents is what the noise and the marked picture themselves say."""
    z, noise, delta = torch.randn(3, 2, 4, 4, 4, generator=worlds.source(1))
    b = torch.tensor([0.3, 0.7])
    a = 1 - b if kind == "flow" else (1 - b * b).sqrt()
    wide = a[:, None, None, None]
    noisy = wide * z + b[:, None, None, None] * noise
    true = shift.native_target(z + delta, noise, a, b, kind)
    found = shift.clean_of(true, noisy + wide * delta, a, b, kind)
    plain = shift.clean_of(shift.native_target(z, noise, a, b, kind), noisy, a, b, kind)
    torch.testing.assert_close(found, plain + delta, atol=1e-4, rtol=1e-4)


def test_weights_and_messages() -> None:
    times = torch.linspace(0, 1, 11)
    weights = shift.late(times, floor=0.1)
    assert bool((weights[1:] <= weights[:-1]).all())
    assert float(weights[0]) > 0.9
    assert float(weights[-1]) == pytest.approx(0.1, abs=0.01)
    made = shift.balanced_messages(200, 32, worlds.source(2))
    assert 13 <= int(made.sum(1).min()) <= int(made.sum(1).max()) <= 19
    table = shift.mapper(8, 16, worlds.source(3))
    torch.testing.assert_close(shift.modulation(torch.zeros(2, 8), table), torch.ones(2, 16))
    spread = shift.modulation(made[:, :8].contiguous(), table).std()
    assert 0.3 < float(spread) < 1.0


@pytest.mark.parametrize("method", ["keyed", "authenlora", "aqualora"])
def test_every_way_of_marking_ends_in_a_signed_file(
    method: Any, folder: Path, tmp_path: Path, pipe: Any
) -> None:
    carriers = {"keyed": "keyed", "authenlora": "zero", "aqualora": "fixed"}[method]
    out, before = tmp_path / "ink.safetensors", run(pipe)
    other = random_adapter(layer_table(pipe), TARGETS, rank=2, seed=5)
    chosen = settings(method=method, zero_share=0.5, crowded=0.5, truncated=0.5, partial=0.3)
    result = train_marked(config(), folder, out, KEY, codec(carriers), chosen, pipe=pipe, shadows=[other])
    assert torch.equal(run(pipe), before)
    assert twin_path(out).exists()
    proof = check_file(out, public_key(KEY.signing_seed))
    assert proof.status == "valid"
    assert proof.manifest["method"] == method
    adapter = formats.load(out, modules=layer_table(pipe))
    assert adapter.digest == result.adapter.digest
    assert any(path.endswith("conv1") for path in adapter.layers) is (method != "aqualora")
    text = out.read_bytes().decode("latin-1")
    assert not [secret for secret in KEY.spellings()[:-1] if secret in text]
    assert not out.with_name(f"{out.name}.ckpt").exists()


def test_the_twin_is_what_the_plain_run_trains(folder: Path, tmp_path: Path, pipe: Any) -> None:
    train(config(), folder, tmp_path / "plain.safetensors", pipe=pipe)
    plain = formats.load(tmp_path / "plain.safetensors", modules=layer_table(pipe))
    train_marked(config(), folder, tmp_path / "ink.safetensors", KEY, codec(), settings(steps=1), pipe=pipe)
    twin = formats.load(tmp_path / "ink.twin.safetensors", modules=layer_table(pipe))
    assert twin.digest == plain.digest


def stopping(after: int) -> Callable[[], bool]:
    calls = iter(range(10_000))
    return lambda: next(calls) >= after


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_run_goes_on_bit_for_bit(after: int, folder: Path, tmp_path: Path, pipe: Any) -> None:
    """Stopped while the twin is trained, and while it is marked."""
    chosen = settings(steps=4, crowded=0.0)
    whole = train_marked(
        config(), folder, tmp_path / "a.safetensors", KEY, codec(), chosen, pipe=pipe
    ).adapter
    out = tmp_path / "b.safetensors"
    with pytest.raises(InterruptedRunError):
        train_marked(config(), folder, out, KEY, codec(), chosen, pipe=pipe, stop=stopping(after))
    again = train_marked(config(), folder, out, KEY, codec(), chosen, pipe=pipe).adapter
    assert again.digest == whole.digest


def test_embedding_draws_its_own_pictures_and_goes_on(tmp_path: Path, pipe: Any) -> None:
    twin = random_adapter(layer_table(pipe), TARGETS, rank=2, base="sd15", name="ink")
    out = tmp_path / "ink.safetensors"
    start = config()
    with pytest.raises(InterruptedRunError):
        embed(twin, out, KEY, codec(), settings(), pipe=pipe, config=start, stop=stopping(2))
    drawn = out.with_name("ink.safetensors.pictures")
    assert len(list(drawn.glob("*.png"))) == 2
    made = embed(twin, out, KEY, codec(), settings(), pipe=pipe, config=start).adapter
    assert len(list(drawn.glob("*.png"))) == 4
    assert set(twin.layers) <= set(made.layers)
    assert max(made.ranks) == 4


def test_the_shift_is_learned(
    tmp_path: Path, folder: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen again and again, a batch's error against the twin's picture plus the mark falls."""
    values: list[float] = []
    measure = Keyed.loss

    def listen(objective: Keyed, draw: Any) -> torch.Tensor:
        value = measure(objective, draw)
        values.append(float(value.detach()))
        return value

    monkeypatch.setattr(Keyed, "loss", listen)
    again = "loracomp.training.loop.draw_of"
    monkeypatch.setattr(again, lambda config, step, *rest: draw_of(config, 0, *rest))
    twin = random_adapter(layer_table(pipe), TARGETS, rank=2, base="sd15", name="ink", size=0.05)
    chosen = settings(steps=15, rank=4, batch=4, crowded=0, truncated=0, style=0, detect=0, lr=2e-2)
    embed(twin, tmp_path / "a.safetensors", KEY, codec(), chosen, pipe=pipe, data=folder, config=config())
    assert values[-1] < 0.8 * values[0]


def test_settings_and_mistakes(folder: Path, tmp_path: Path, pipe: Any) -> None:
    assert mark_settings({"steps": 5, "strengths": [0.5, 1], "mark": 2}).strengths == (0.5, 1.0)
    for values in ({"steps": "x"}, {"steps": 1.5}, {"strengths": 3}, {"lr": 0}, {"mark": -1}, {"rank": True}):
        with pytest.raises(UsageError):
            mark_settings(values)
    for unknown in ({"stpes": 5}, {"method": "none"}):
        with pytest.raises(UnknownNameError):
            mark_settings(unknown)
    out = tmp_path / "x.safetensors"
    with pytest.raises(UsageError, match="needs a codec with keyed carriers"):
        train_marked(config(), folder, out, KEY, codec("fixed"), settings(), pipe=pipe)
    with pytest.raises(UsageError, match="a key of 16 bits"):
        train_marked(
            config(), folder, out, worlds.key(bits=16), codec("fixed"), settings(method="aqualora"), pipe=pipe
        )
    with pytest.raises(UsageError, match="learned; use `train run"):
        embed(
            random_adapter(shapes_of("sd15")),
            out,
            KEY,
            codec("zero"),
            settings(method="authenlora"),
            pipe=pipe,
        )
    with pytest.raises(UsageError, match="no accelerators"):
        train_marked(config(train_text_encoder=True), folder, out, KEY, codec(), settings(), pipe=pipe)


def test_an_interrupted_run_keeps_its_settings(folder: Path, tmp_path: Path, pipe: Any) -> None:
    out = tmp_path / "b.safetensors"
    with pytest.raises(InterruptedRunError):
        train_marked(config(), folder, out, KEY, codec(), settings(), pipe=pipe, stop=stopping(3))
    state = (tmp_path / "b.safetensors.ckpt" / "mark.json").read_text()
    assert json.loads(state)["commitment"] == KEY.commitment
    assert not [secret for secret in KEY.spellings()[:-1] if secret in state]
    with pytest.raises(TrainingError, match="with other settings"):
        train_marked(config(), folder, out, KEY, codec(), settings(lr=0.5), pipe=pipe)
