"""The gate's training: the trainer computes what the engine will, learns, goes on after a stop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny import layer_table, random_adapter, tiny_pipeline
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import TrainingError, UsageError
from loracomp.fusion import Program
from loracomp.fusion.gated import Form, GateWeights
from loracomp.lowrank import LowRank
from loracomp.pipeline import attach, base_of, denoiser_of, detach, layers_of
from loracomp.training.gate import state
from loracomp.training.gate.bank import Bench, Turn
from loracomp.training.gate.draws import OTHER, SOLO, WHOLE, Draws
from loracomp.training.gate.material import Pictures
from loracomp.training.gate.objective import GateVectors, Noise, Objective
from loracomp.training.gate.recorded import Recorded, Work
from loracomp.training.gate.run import Run, Side
from loracomp.training.gate.settings import Settings
from loracomp.training.interrupt import InterruptedManyError

SUFFIXES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1", "proj_in", "proj_out")


def adapters_of(pipe: Any, count: int = 4) -> list[Adapter]:
    prefix = denoiser_of(pipe)[0] + "."
    shapes = {path: shape for path, shape in layer_table(pipe).items() if path.startswith(prefix)}
    return [
        random_adapter(shapes, SUFFIXES[n:], rank=2 + n, alpha=float(2 + n), seed=n, name=f"a{n}", size=0.2)
        for n in range(count)
    ]


def decaying(adapter: Adapter) -> Adapter:
    """The adapter with directions of very different sizes, so that the strongest ones are clear."""

    def changed(layer: LowRank, seed: int) -> LowRank:
        sizes = 30.0 ** -torch.arange(layer.rank) * (1 + 0.3 * seed)
        return replace(layer, up=layer.up * sizes.reshape(1, -1, *(1,) * (layer.up.ndim - 2)))

    return replace(
        adapter, layers={path: changed(layer, adapter.ranks[0]) for path, layer in adapter.layers.items()}
    )


def pictures(channels: int = 4, side: int = 8) -> Pictures:
    """Four concepts alone, and scenes of two and three of them."""
    parts = [("a",), ("b",), ("c",), ("d",), ("a", "b"), ("c", "d"), ("a", "b", "c")]
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(len(parts), channels, side, side, generator=generator)
    return Pictures(latents, tuple(parts), tuple(" ".join(part) for part in parts))


PLACES = {"a": [0], "b": [1], "c": [2], "d": [3]}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline("sd15")


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
@pytest.mark.parametrize("form", [Form.ours(), Form.published("P"), Form.published("T")])
def test_the_trainer_computes_what_the_engine_does(kind: str, form: Form, tmp_path: Path) -> None:
    pipe = tiny_pipeline(kind)
    adapters, model = [decaying(adapter) for adapter in adapters_of(pipe)], denoiser_of(pipe)[1]
    bench = Bench(denoiser_of(pipe)[0], adapters, layers_of(pipe), form)
    vectors = GateVectors(form, bench.widths, 0)
    with torch.no_grad():
        vectors.values.add_(
            0.3 * torch.randn(vectors.values.shape, generator=torch.Generator().manual_seed(2))
        )
    objective = Objective(pipe, pictures(side=16), bench, vectors)
    chosen, times = torch.tensor([[3, 0, 2]]), torch.tensor([400.0])
    noisy = torch.randn(1, 4, 16, 16)
    states = {name: part[:1] for name, part in objective.states.items()} | {"side": torch.tensor([128.0])}
    with torch.no_grad():
        gates = vectors.at(times / 1000, torch.float32)
        ours = objective._predict(Turn(chosen, gates), noisy, times, states)
        plain = objective._predict(Turn(chosen, None), noisy, times, states)
    bench.leave()
    parts = vectors.values.detach().split(list(bench.widths.values()), dim=1)
    GateWeights(form, base_of(pipe), dict(zip(bench.widths, parts, strict=True))).save(tmp_path / "gate")
    used = [adapters[place] for place in chosen[0]]
    program = Program("gated", (1.0,) * 3, {"gate": str(tmp_path / "gate")})
    pipe.scheduler.set_timesteps(5)
    pipe.scheduler.timesteps[1] = 400
    with attach(pipe, used, program), torch.no_grad():
        live = objective.wiring.predict(model, noisy, pipe.scheduler.timesteps[1:2], states)
    with attach(pipe, used), torch.no_grad():
        summed = objective.wiring.predict(model, noisy, pipe.scheduler.timesteps[1:2], states)
    # Half precision of the stored vectors; and a global adapter is found by iteration.
    assert float((ours - live).norm() / (live - summed).norm()) < (2e-2 if form.global_rank else 2e-3)
    assert float((plain - summed).norm() / summed.norm()) < 1e-5
    assert float((live - summed).norm() / summed.norm()) > 1e-3


def run_of(pipe: Any, out: Path, **changes: Any) -> tuple[Run, Bench]:
    settings = Settings(
        **{"steps": 12, "minutes": 5, "batch": 6, "lr": 0.02, "every": 9, "measured": 24, **changes}
    )
    bench = Bench("unet", adapters_of(pipe), layers_of(pipe), settings.form)
    vectors = GateVectors(settings.form, bench.widths, settings.seed)
    side = Side(Draws(pictures(), PLACES, settings), Objective(pipe, pictures(), bench, vectors))
    gate = GateWeights(settings.form, base_of(pipe), {}, {})
    return Run(settings, vectors, side, side, out, gate, lambda event: None, lambda: False), bench


def _reached(run: Run, step: int) -> bool:
    return run.step == step


def test_training_lowers_the_error_of_what_it_sees(pipe: Any, tmp_path: Path) -> None:
    denoiser_of(pipe)[1].requires_grad_(False)
    run, bench = run_of(pipe, tmp_path / "gate", steps=30, every=20, counts=(2, 3), hinge=0.0, average=0.5)
    try:
        summary = run.train()
    finally:
        bench.leave()
    assert summary["unseen"]["2"]["less"] > 0.5
    assert summary["unseen"]["3"]["less"] > 0.5
    assert not state.state_path(tmp_path / "gate").exists()
    assert GateWeights.load(tmp_path / "gate").record["steps"] == 30


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(pipe: Any, tmp_path: Path) -> None:
    denoiser_of(pipe)[1].requires_grad_(False)

    def trained(out: Path, stops: list[int]) -> Tensor:
        for stop in [*stops, 0]:
            # The learning rate follows the steps, never the clock of a busy machine.
            run, bench = run_of(pipe, out, steps=6, minutes=9000)
            run.stop = partial(_reached, run, stop)
            try:
                run.train()
            except InterruptedManyError:
                assert stop
            finally:
                bench.leave()
        return run.average

    whole, pieces = trained(tmp_path / "a", []), trained(tmp_path / "b", [2, 5])
    assert float((whole - pieces).abs().max()) < 1e-6
    assert float((whole - Form.ours().initial(whole.shape[1])).abs().max()) > 1e-3


def test_a_state_of_other_settings_is_refused(pipe: Any, tmp_path: Path) -> None:
    run, bench = run_of(pipe, tmp_path / "gate")
    bench.leave()
    run.save()
    with pytest.raises(TrainingError, match="other settings"):
        run_of(pipe, tmp_path / "gate", lr=0.01)


def test_samples_are_what_their_kinds_say() -> None:
    scenes, settings = pictures(), Settings(form=Form.ours(solo=False), counts=(1, 2, 3, 4))
    draws = Draws(scenes, PLACES, settings)
    names = {place: name for name, rows in PLACES.items() for place in rows}
    seen = set()
    for count in draws.counts():
        batch = draws.batch(count, 200, Random(count))
        assert batch.chosen.shape == (200, count)
        rows = zip(*(getattr(batch, field).tolist() for field in vars(batch)), strict=True)
        for chosen, picture, words, kind, asked in rows:
            concepts = [names[place] for place in chosen]
            parts = scenes.parts[picture]
            assert len(set(concepts)) == count
            assert set(parts) <= set(concepts)
            assert concepts[asked] == parts[0]
            seen.add((count, kind))
            if kind == WHOLE:
                assert len(parts) > 1
            else:
                assert len(parts) == 1
            if kind == OTHER:
                assert scenes.parts[words][0] in set(concepts) - set(parts)
            else:
                assert words in (picture, len(scenes.captions))
        kinds = batch.kind.tolist()
        assert kinds.count(SOLO) == (33 if count > 1 else 200)
        assert kinds.count(OTHER) == (17 if count > 1 else 0)
        assert set(kinds[: kinds.count(SOLO)]) == {SOLO}
    assert seen == {(1, SOLO)} | {(n, kind) for n in (2, 3, 4) for kind in (WHOLE, SOLO, OTHER)}


def test_the_target_of_one_alone_is_what_it_does_alone(pipe: Any) -> None:
    settings = Settings(solo=1.0, hinge=0.0)
    bench = Bench("unet", adapters_of(pipe), layers_of(pipe), settings.form)
    vectors = GateVectors(settings.form, bench.widths, 0)
    objective = Objective(pipe, pictures(), bench, vectors)
    batch = Draws(pictures(), PLACES, settings).batch(1, 4, Random(0))
    noise = Noise(torch.rand(4), torch.randn(4, 4, 8, 8))
    with torch.no_grad():
        errors = objective.errors(objective.placed(batch, noise))
    bench.leave()
    assert float(errors.max()) < 1e-10


def test_gradients_replace_those_before(pipe: Any) -> None:
    settings = Settings(counts=(2, 3))
    bench = Bench("unet", adapters_of(pipe), layers_of(pipe), settings.form)
    vectors = GateVectors(settings.form, bench.widths, 0)
    objective, draws = Objective(pipe, pictures(), bench, vectors), Draws(pictures(), PLACES, settings)
    work = Work(objective, settings.hinge, settings.margin)
    noise = Noise(torch.rand(6), torch.randn(6, 4, 8, 8))
    one, other = (objective.placed(draws.batch(count, 6, Random(count)), noise) for count in (2, 3))
    errors = work(one)
    gradient = vectors.values.grad
    assert gradient is not None
    first = gradient.clone()
    work(other)
    assert vectors.values.grad is gradient
    assert not torch.allclose(gradient, first)
    assert torch.equal(work(one), errors)
    bench.leave()
    assert torch.allclose(gradient, first)
    assert float(first.abs().max()) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_steps_are_the_same() -> None:
    settings = Settings(counts=(2, 3))
    pipe = tiny_pipeline("sd15").to("cuda")
    bench = Bench("unet", adapters_of(pipe), layers_of(pipe), settings.form)
    vectors = GateVectors(settings.form, bench.widths, 0).to("cuda")
    objective, draws = Objective(pipe, pictures(), bench, vectors), Draws(pictures(), PLACES, settings)
    work = Work(objective, settings.hinge, settings.margin)
    recorded = Recorded(work)
    for step in range(6):
        noise = Noise(torch.rand(6), torch.randn(6, 4, 8, 8))
        batch = objective.placed(draws.batch(2 + step % 2, 6, Random(step)), noise)
        errors = recorded(batch).clone()
        assert vectors.values.grad is not None
        gradient = vectors.values.grad.clone()
        assert torch.allclose(work(batch), errors, rtol=1e-4)
        assert torch.allclose(vectors.values.grad, gradient, rtol=1e-3, atol=1e-6)
    bench.leave()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="lr"):
        Settings(lr=2.0)
    with pytest.raises(UsageError, match="counts"):
        Settings(counts=(0,))
    with pytest.raises(UsageError, match="joint"):
        Settings(form=Form(joint=True))
    with pytest.raises(TrainingError, match="at once"):
        Draws(pictures(), PLACES, Settings(counts=(9,))).counts()
    detach(tiny_pipeline("sd15"))
