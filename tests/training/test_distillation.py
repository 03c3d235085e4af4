"""Accelerators: the ways they walk, against diffusers in float64, and what the loss asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from tiny import layer_table, run, tiny_pipeline

from loracomp import formats
from loracomp.adapter import Acceleration
from loracomp.errors import UsageError
from loracomp.pipeline import denoiser_of
from loracomp.training import run as runs
from loracomp.training.cache import DiskCache, encode
from loracomp.training.config import TrainConfig, make_config
from loracomp.training.dataset import read_dataset
from loracomp.training.distillation import Distillation
from loracomp.training.inject import Injected, inject
from loracomp.training.interrupt import InterruptedRunError
from loracomp.training.order import Chances, Draw, draw
from loracomp.training.paths import Arc, Line, guided, segments
from loracomp.training.paths import Path as Way

Make = Callable[..., TrainConfig]
FEW = {"kind": "accelerator", "teacher_guidance": 2.0, "teacher_steps": 2, "student_steps": (2, 4)}


def _ddim(prediction: str) -> Any:
    zero = prediction == "v_prediction"
    return DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False,
        rescale_betas_zero_snr=zero, timestep_spacing="trailing",
    )  # fmt: skip


def _batch(count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(count, 4, 6, 6, generator=generator).double() for _ in range(2))
    return first, second


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 5, 8])
def test_an_arc_is_walked_as_ddim_walks_it(prediction: Any, steps: int) -> None:
    scheduler = _ddim(prediction)
    scheduler.set_timesteps(steps)
    way = Arc.of(scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod), prediction)
    noisy, predicted = _batch()
    for done, timestep in enumerate(scheduler.timesteps.tolist()):
        now, then = (torch.tensor([1 - place / steps]) for place in (done, done + 1))
        assert way.timesteps(now).tolist() == [timestep]
        expected = scheduler.step(predicted, timestep, noisy).prev_sample
        ours = way.step(noisy, way.velocity(predicted, noisy, now), now, then)
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


def test_a_line_is_walked_as_euler_walks_it() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - k / 5 for k in range(5)])
    noisy, predicted = _batch()
    way = Line(1000, 3.0)
    for done, timestep in enumerate(scheduler.timesteps):
        now, then = (torch.tensor([1 - place / 5]) for place in (done, done + 1))
        torch.testing.assert_close(way.timesteps(now), timestep[None])
        expected = scheduler.step(predicted, timestep, noisy).prev_sample
        torch.testing.assert_close(way.step(noisy, predicted, now, then), expected, atol=1e-5, rtol=1e-5)


WAYS: tuple[Way, ...] = (
    Arc.of(_ddim("v_prediction").alphas_cumprod, 1.0, "v_prediction"),
    Arc.of(_ddim("epsilon").alphas_cumprod, 1.0, "epsilon"),
    Line(1000, 3.0),
)


@pytest.mark.parametrize("way", WAYS, ids=["v", "epsilon", "flow"])
def test_one_step_with_the_implied_velocity_lands_there(way: Way) -> None:
    level = (torch.arange(30) + 0.5) / 30
    now, then = segments(level, 4, 8, torch.zeros(30, dtype=torch.bool))
    noisy, landed = _batch(30)
    velocity = way.implied(noisy, landed, now, then)
    torch.testing.assert_close(way.step(noisy, velocity, now, then), landed, atol=1e-5, rtol=1e-5)
    back = way.implied(noisy, way.step(noisy, landed, now, then), now, then)
    torch.testing.assert_close(back, landed, atol=1e-4, rtol=1e-4)
    weights = way.weights(now)
    assert ((weights > 0) & (weights <= 1)).all()


def test_the_last_timestep_is_pure_noise_where_the_schedule_ends_without_signal() -> None:
    clean, noise = _batch()
    noised = WAYS[0].noised(clean, noise, torch.ones(1))
    torch.testing.assert_close(noised, noise, atol=1e-6, rtol=0)
    torch.testing.assert_close(WAYS[0].noised(clean, noise, torch.zeros(1)), clean, atol=1e-6, rtol=0)


def test_segments_are_the_steps_of_the_runs() -> None:
    level = (torch.arange(30) + 0.5) / 30
    now, then = segments(level, 4, 8, torch.zeros(30, dtype=torch.bool))
    lengths = now - then
    assert float(lengths.min()) == pytest.approx(1 / 8)
    assert float(lengths.max()) == pytest.approx(1 / 4)
    assert int((now == 1).sum()) == int((then.abs() < 1e-6).sum()) == 5
    assert sum((now == 1) & (lengths - 1 / 6 < 1e-6)) >= 1
    start, _ = segments(level, 4, 8, torch.ones(30, dtype=torch.bool))
    assert (start == 1).all()


def test_guidance_is_that_of_diffusers() -> None:
    plain, told = _batch(3)
    mixed = plain + 4 * (told - plain)
    torch.testing.assert_close(guided(plain, told, 4.0, 0.0), mixed)
    torch.testing.assert_close(guided(plain, told, 4.0, 0.7), rescale_noise_cfg(mixed, told, 0.7))
    torch.testing.assert_close(guided(plain, told, 1.0, 0.0), told)


@contextmanager
def _ready(pipe: Any, folder: Path, **changes: Any) -> Iterator[tuple[Distillation, Injected, Draw]]:
    """An objective with layers on its base, and one batch."""
    data = read_dataset(folder)
    encoded = encode(
        pipe, data, data.captions((), "x"), resolution=32, variants=1, with_text=True, cache=DiskCache(None)
    )
    settings: dict[str, Any] = {"guidance": 2.0, "teacher_steps": 2, "student_steps": (2, 4)} | changes
    objective = Distillation(pipe, encoded, None, False, 32, **settings)
    layers = inject(pipe, rank=2, alpha=2.0, targets=["to_q", "to_v"], text_encoders=(), seed=0)
    objective.silent = layers.silent
    batch = draw(0, 0, 4, 4, objective.latent_shape, Chances(terminal=0.3))
    try:
        yield objective, layers, batch
    finally:
        layers.remove()


@pytest.mark.parametrize("base", ["sd15", "sdxl", "sd3"])
def test_a_teacher_of_one_step_without_guidance_asks_for_itself(base: str, folder: Path) -> None:
    """Fresh layers change nothing, so the student already lands where its teacher does."""
    pipe = tiny_pipeline(base)
    with _ready(pipe, folder, guidance=1.0, teacher_steps=1) as (objective, _, batch):
        assert float(objective.loss(batch).detach()) < 1e-8
    with _ready(pipe, folder) as (objective, _, batch):
        assert float(objective.loss(batch).detach()) > 1e-7


def test_the_teacher_is_the_base_and_only_the_layers_learn(
    folder: Path, sd15: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[torch.Tensor] = []
    with _ready(sd15, folder) as (objective, layers, batch):
        measure = objective._target

        def listen(*parts: Any) -> torch.Tensor:
            targets.append(measure(*parts))
            return targets[-1]

        monkeypatch.setattr(objective, "_target", listen)
        for value in (0.0, 0.3):
            for name, tensor in layers.tensors.items():
                if name.endswith(".up"):
                    tensor.data.fill_(value)
            objective.loss(batch).backward()
        assert torch.equal(targets[0], targets[1])
        assert not targets[0].requires_grad
        assert all(tensor.grad is not None and tensor.requires_grad for tensor in layers.tensors.values())
        own = {id(tensor) for tensor in layers.tensors.values()}
        for part in (sd15.unet, sd15.text_encoder, sd15.vae):
            assert all(p.grad is None for p in part.parameters() if id(p) not in own)


def test_the_target_is_where_a_guided_ddim_run_lands(folder: Path) -> None:
    """The objective's teacher against diffusers' own scheduler, told to walk the same timesteps."""
    pipe = tiny_pipeline("sd15")
    pipe.scheduler = _ddim("epsilon")
    with _ready(pipe, folder, guidance=3.0, teacher_steps=2, student_steps=(4, 4)) as (objective, _, batch):
        noise = torch.randn(4, *objective.latent_shape, generator=torch.Generator().manual_seed(1))
        now, then = torch.ones(4), torch.full((4,), 0.75)
        states = objective.batch(batch).states
        velocity = objective._target(noise, now, then, states)
        landed = objective.path.step(noise, velocity, now, then)
        empty = pipe.encode_prompt("", "cpu", 1, False)[0].repeat(4, 1, 1)
        scheduler, expected = pipe.scheduler, noise
        scheduler.set_timesteps(8)
        model: Any = denoiser_of(pipe)[1]
        with torch.no_grad(), objective.silent():
            for timestep in scheduler.timesteps[:2]:
                plain, told = (model(expected, timestep, text).sample for text in (empty, states["hidden"]))
                expected = scheduler.step(plain + 3 * (told - plain), timestep, expected).prev_sample
    torch.testing.assert_close(landed, expected, atol=2e-3, rtol=2e-3)


def _stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= steps


def test_ten_steps_equal_five_and_five(folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any) -> None:
    config = tiny_config(**FEW, steps=10, flip=True)
    straight = runs.train(config, folder, tmp_path / "straight.safetensors", pipe=sd15)
    out = tmp_path / "broken.safetensors"
    with pytest.raises(InterruptedRunError):
        runs.train(config, folder, out, pipe=sd15, stop=_stop_after(5))
    assert runs.resume(out, pipe=sd15).adapter.digest == straight.adapter.digest


def test_leaps_come_closer_to_the_teacher_when_a_batch_is_seen_again(folder: Path, sd15: Any) -> None:
    with _ready(sd15, folder, guidance=6.0) as (objective, layers, batch):
        optimizer = torch.optim.Adam(layers.tensors.values(), lr=2e-2)
        values = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = objective.loss(batch)
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
    assert values[-1] < 0.9 * values[0]


def test_the_file_says_that_it_is_an_accelerator(
    folder: Path, tmp_path: Path, tiny_config: Make, sd15: Any
) -> None:
    before = run(sd15)
    out = tmp_path / "fast.safetensors"
    result = runs.train(tiny_config(**FEW, steps=2, sample_count=1), folder, out, pipe=sd15)
    assert torch.equal(run(sd15), before)
    assert (result.config.sample_steps, result.config.sample_guidance) == (3, 1.0)
    assert (result.config.teacher_guidance, result.config.teacher_rescale) == (2.0, 0.0)
    assert formats.load(out, modules=layer_table(sd15)).accelerator == Acceleration(3, 1.0)
    plain = runs.train(tiny_config(steps=1), folder, tmp_path / "ink.safetensors", pipe=sd15)
    assert formats.load(plain.out, modules=layer_table(sd15)).accelerator is None


def test_presets_and_settings() -> None:
    for base in ("glyph", "sd15", "sd3"):
        config = make_config({"name": "fast", "kind": "accelerator", "base": base})
        assert config.objective == "distillation"
        assert config.acceleration is not None
        assert config.acceleration.steps == 6
    assert make_config({"name": "ink", "kind": "style"}).acceleration is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"student_steps": [8, 4]}, "student_steps: fewest and most"),
        ({"teacher_guidance": 0.5}, "teacher_guidance"),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma: has no part"),
        ({"train_text_encoder": True}, "train_text_encoder: has no part"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_config({"name": "fast", "kind": "accelerator"} | values)


def test_models_with_guidance_as_an_input_are_refused(
    folder: Path, tmp_path: Path, tiny_config: Make
) -> None:
    with pytest.raises(UsageError, match="has guidance distilled into it already"):
        runs.train(
            tiny_config("flux", **FEW), folder, tmp_path / "fast.safetensors", pipe=tiny_pipeline("flux")
        )
