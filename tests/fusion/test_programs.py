"""Gates per step, block, rank, half of guidance and sample: each against adapters and runs made by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from predictions import Predictions, images, relative
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import METHODS, CachePlan, Curve, Profile, Program
from loracomp.fusion.blocks import names
from loracomp.fusion.steps import sigmas_of
from loracomp.lowrank import LowRank
from loracomp.pipeline import attach, denoiser_of

SUFFIXES = ("to_q", "to_v", "ff.net.2", "proj_in", "q_proj", "fc1")


def adapters(pipe: Any, count: int = 2, suffixes: tuple[str, ...] = SUFFIXES) -> list[Adapter]:
    shapes = layer_table(pipe)
    return [random_adapter(shapes, suffixes, rank=2 + n, seed=n, name=f"a{n}") for n in range(count)]


def prediction(
    pipe: Any, chosen: list[Adapter], program: Any = "merge", call: int = 0, **options: Any
) -> Tensor:
    """One output of the denoiser in a run with adapters."""
    with attach(pipe, chosen, program), Predictions(pipe) as seen:
        run(pipe, num_inference_steps=2, **options)
    return seen[call]


# Curves


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        (Curve(((0, 0), (0.3, 1))), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]),
        (Curve(((0.2, 1), (0.6, 0))), [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]),
        (Curve(((2, 1), (4, 0.5), (5, 0)), "step"), [1, 1, 1, 1, 0.5, 0, 0, 0, 0, 0]),
        (Curve(((0, 0), (0.5, 1)), shape="linear"), [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]),
    ],
)
def test_a_curve_is_what_its_points_say(curve: Curve, values: list[float]) -> None:
    torch.testing.assert_close(curve.values(10), torch.tensor(values, dtype=torch.float32))


def test_a_curve_over_sigma_follows_the_noise() -> None:
    sigmas = torch.tensor([14.0, 5.0, 2.0, 0.3])
    assert Curve(((0, 1), (2, 0.5), (10, 0)), "sigma").values(4, sigmas).tolist() == [0, 0.5, 0.5, 1]
    with pytest.raises(UsageError, match="sigma"):
        Curve(((0, 1),), "sigma").values(4)


def test_a_curve_without_order_is_refused() -> None:
    for points in ((), ((1.0, 0.0), (0.0, 1.0))):
        with pytest.raises(UsageError, match="ascending"):
            Curve(points)
    with pytest.raises(UsageError, match="'hour'"):
        Curve(((0, 1),), "hour")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3"])
def test_a_curve_over_sigma_acts_in_the_steps_with_that_noise(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    chosen = adapters(pipe, 1, ("to_q", "ff.net.2"))
    pipe.scheduler.set_timesteps(4)
    sigmas = sigmas_of(pipe.scheduler)
    assert sigmas is not None
    assert (sigmas.diff() < 0).all()
    middle = float(sigmas[1:3].mean())
    by_sigma = Profile(Curve(((0, 1), (middle, 0)), "sigma"))
    by_step = Profile(Curve(((0, 0), (2, 1)), "step"))
    with attach(pipe, chosen, Program(profiles=(by_sigma,))):
        ours = run(pipe)
    with attach(pipe, chosen, Program(profiles=(by_step,))):
        assert torch.equal(run(pipe), ours)
    assert not torch.equal(run(pipe), ours)


# Blocks and ranks

BLOCKS = {
    "sd15": ("up.1", "mid", "down.1.0", "unet.up_blocks.0"),
    "sdxl": ("up.0.1", "down.1.0", "mid"),
    "sd3": ("block.1", "transformer.transformer_blocks.0.attn"),
    "flux": ("single.1", "block.0"),
}


def without(adapter: Adapter, name: str) -> Adapter:
    return replace(adapter, layers={p: v for p, v in adapter.layers.items() if name not in names(p)})


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_at_zero_is_a_block_without_the_adapter(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    chosen = adapters(pipe, 2, (*SUFFIXES, "conv1"))
    for name in BLOCKS[kind]:
        cut = without(chosen[0], name)
        assert len(cut.layers) < len(chosen[0].layers), name
        with attach(
            pipe, chosen, Program("merge", (0.8, 0.5), profiles=(Profile(blocks={name: 0}), Profile()))
        ):
            ours = run(pipe, num_inference_steps=2)
        with attach(pipe, [cut, chosen[1]], weights=[0.8, 0.5]):
            assert relative(ours, run(pipe, num_inference_steps=2)) < 1e-6


def test_the_most_specific_name_decides(pipe: Any) -> None:
    chosen = adapters(pipe, 1)
    text = "text" if any(path.startswith("text") for path in chosen[0].layers) else "*"
    name = denoiser_of(pipe)[0]
    program = Program(profiles=(Profile(blocks={"*": 0.0, name: 0.5, text: 0.25}),))
    layers = {p: v.scaled(0.25 if p.startswith("text") else 0.5) for p, v in chosen[0].layers.items()}
    with attach(pipe, chosen, program):
        ours = run(pipe)
    with attach(pipe, [replace(chosen[0], layers=layers)]):
        assert relative(ours, run(pipe)) < 1e-5


def test_a_block_that_does_not_exist_is_refused(pipe: Any) -> None:
    with pytest.raises(UsageError, match=r"no adapter changes a block 'down\.9'; there are .*(up|block)"):
        attach(pipe, adapters(pipe, 1), Program(profiles=(Profile(blocks={"down.9": 0}),)))
    with pytest.raises(UsageError, match="2 profiles for 1 adapters"):
        attach(pipe, adapters(pipe, 1), Program(profiles=(Profile(), Profile())))


def test_leading_ranks_alone_are_the_cut_adapter(pipe: Any) -> None:
    chosen = adapters(pipe, 2)

    def cut(layer: LowRank) -> LowRank:
        return LowRank(layer.down[:1] * layer.scale, layer.up[:, :1])

    with attach(pipe, chosen, Program(profiles=(Profile(), Profile(ranks=1)))):
        ours = run(pipe)
    with attach(pipe, [chosen[0], chosen[1].map(cut)]):
        assert relative(ours, run(pipe)) < 1e-6


# Halves of guidance


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3"])
def test_the_unconditional_half_has_its_own_gates(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    chosen = adapters(pipe)
    program = Program("merge", (0.9, 0.4), profiles=(Profile(unconditional=0), Profile()))
    ours = prediction(pipe, chosen, program)
    conditional = prediction(pipe, chosen, Program("merge", (0.9, 0.4)))[1:]
    unconditional = prediction(pipe, chosen, Program("merge", (0.0, 0.4)))[:1]
    assert relative(ours, torch.cat([unconditional, conditional])) < 1e-5
    # Without guidance there is no unconditional half.
    plain = prediction(pipe, chosen, program, guidance_scale=1.0)
    assert relative(plain, prediction(pipe, chosen, Program("merge", (0.9, 0.4)), guidance_scale=1.0)) < 1e-6


def test_flux_computes_the_unconditional_half_in_a_call_of_its_own() -> None:
    pipe = tiny_pipeline("flux")
    chosen = adapters(pipe)
    guided: dict[str, Any] = {"true_cfg_scale": 2.0, "negative_prompt": "grey"}
    program = Program("merge", (0.9, 0.4), profiles=(Profile(unconditional=0), Profile()))
    for call, weights in ((0, (0.9, 0.4)), (1, (0.0, 0.4)), (2, (0.9, 0.4))):
        expected = prediction(pipe, chosen, Program("merge", weights), min(call, 1), **guided)
        if call < 2:
            assert relative(prediction(pipe, chosen, program, call, **guided), expected) < 1e-5
    assert len(guided) == 2


# Mixtures


def mixtures(count: int) -> list[Program]:
    """Programs of several methods and weights for three adapters."""
    half = Profile(unconditional=0.5, text=0.5)
    return [
        Program("merge", (1.0, 0.3, -0.5)),
        Program("composite", (0.8, 0.0, 1.0)),
        Program("switch", (0.6, 1.0, 0.7), {"period": 0.4}),
        Program("merge", (0.0, 1.2, 0.4), profiles=(Profile(), half, Profile(Curve(((0, 0), (0.5, 1)))))),
    ][:count]


@pytest.mark.parametrize(
    "prompts", [["a red apple", "a blue car", "a cat", "a tree"], ["a red apple", "a cat"]]
)
def test_a_batch_of_mixtures_equals_single_runs(pipe: Any, prompts: list[str]) -> None:
    chosen, programs = adapters(pipe, 3), mixtures(4)
    repeats = 4 // len(prompts)
    seeds = [5, 6, 7, 8]
    with attach(pipe, chosen, programs) as attachment:
        together = images(pipe, prompts, seeds, num_images_per_prompt=repeats)
        assert attachment.prompts.encodings >= 4
    for index, program in enumerate(programs):
        with attach(pipe, chosen, program):
            alone = images(pipe, [prompts[index // repeats]], [seeds[index]])
        assert relative(together[index : index + 1], alone) < 1e-5, index
    assert relative(together[:1], images(pipe, prompts[:1], seeds[:1])) > 1e-3
    assert "encode_prompt" not in vars(pipe)


def test_programs_that_do_not_match_the_batch_are_refused(pipe: Any) -> None:
    with (
        attach(pipe, adapters(pipe, 3), mixtures(3)),
        pytest.raises(UsageError, match="3 programs for a batch of 2 images"),
    ):
        images(pipe, ["a", "b"], [0, 1])


# Text encoders


def test_every_branch_reads_the_prompt_as_its_own_adapters_do(pipe: Any) -> None:
    chosen = adapters(pipe, 3)
    assert any(path.startswith("text") for path in chosen[0].layers)
    alone = [prediction(pipe, [adapter]) for adapter in chosen]
    with attach(pipe, chosen, "composite") as attachment, Predictions(pipe) as seen:
        run(pipe, num_inference_steps=2)
        assert attachment.prompts.encodings == 3
        run(pipe, num_inference_steps=2)
    assert relative(seen[0], torch.stack(alone).mean(0)) < 1e-5
    assert torch.equal(seen[2], seen[0])


def test_one_reading_needs_one_encoding(pipe: Any) -> None:
    with attach(pipe, adapters(pipe, 2), "switch") as attachment:
        run(pipe)
        assert attachment.prompts.encodings == 0
        assert "encode_prompt" not in vars(pipe)


def test_the_text_factor_acts_in_the_text_encoders_alone(pipe: Any) -> None:
    chosen = adapters(pipe, 1)
    layers = {p: v.scaled(0.3) if p.startswith("text") else v for p, v in chosen[0].layers.items()}
    with attach(pipe, chosen, Program(profiles=(Profile(text=0.3),))):
        ours = run(pipe)
    with attach(pipe, [replace(chosen[0], layers=layers)]):
        assert relative(ours, run(pipe)) < 1e-5


# As data

curves = st.builds(
    Curve,
    st.lists(st.tuples(st.floats(0, 1), st.floats(-2, 2)), min_size=1).map(lambda p: tuple(sorted(p))),
    st.sampled_from(["run", "step", "sigma"]),
    st.sampled_from(["constant", "linear"]),
)
profiles = st.builds(
    Profile,
    st.none() | curves,
    st.dictionaries(st.text(), st.floats(-2, 2)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 64),
)
caches = st.builds(
    CachePlan, st.integers(1, 9), st.lists(st.integers(0, 50)).map(tuple), st.integers(1, 4), st.floats(0)
)


@given(st.lists(profiles, max_size=3), st.none() | caches)
def test_a_program_survives_json_with_all_its_parts(parts: list[Profile], cache: CachePlan | None) -> None:
    program = Program("merge", (1.0,) * len(parts), profiles=tuple(parts), cache=cache)
    assert Program.from_json(program.to_json()) == program


@given(st.sampled_from(list(METHODS)), st.lists(curves, min_size=2, max_size=2), st.integers(1, 30))
def test_a_curve_multiplies_what_the_method_says(method: str, two: list[Curve], steps: int) -> None:
    sigmas = torch.linspace(1, 0, steps)
    program = Program(method, (0.7, -1.1))
    shaped = replace(program, profiles=tuple(map(Profile, two))).table(steps, sigmas)
    factors = torch.stack([curve.values(steps, sigmas) for curve in two], dim=1)
    torch.testing.assert_close(shaped.gates, program.table(steps).gates * factors[:, None])


def test_the_python_of_the_engine_page_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "engine.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    pipe = tiny_pipeline("sd15")
    cat, watercolor = adapters(pipe, 2, (*SUFFIXES, "conv1"))
    before = run(pipe)
    exec(compile(code, page.name, "exec"), {"pipe": pipe, "cat": cat, "watercolor": watercolor})
    assert torch.equal(run(pipe), before)
