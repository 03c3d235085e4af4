"""Laws of gated fusion on the engine: where it equals merge, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gates import noisy
from predictions import relative
from tiny import KINDS, layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import BaseMismatchError, FormatError, ResourceError, UsageError
from loracomp.fusion import METHODS, Program
from loracomp.fusion.gated import Form, GateWeights
from loracomp.pipeline import attach, base_of, denoiser_of, detach

SUFFIXES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "proj_in")


def adapters_for(pipe: Any, count: int = 3) -> list[Adapter]:
    """Adapters of different ranks and scales, some of which leave layers alone."""
    shapes = layer_table(pipe)
    return [
        random_adapter(shapes, SUFFIXES[n:], rank=2 + n, alpha=float(1 + n), seed=n, name=f"a{n}")
        for n in range(count)
    ]


def saved(pipe: Any, form: Form, path: Path, *, start: bool = False, seed: int = 0) -> str:
    """A gate for all layers of a pipeline's denoiser in a file."""
    prefix = denoiser_of(pipe)[0] + "."
    widths = {p: shape[0] for p, shape in layer_table(pipe).items() if p.startswith(prefix)}
    layers = {
        p: form.initial(width) if start else noisy(form, width, seed + i)
        for i, (p, width) in enumerate(widths.items())
    }
    GateWeights(form, base_of(pipe), layers).save(path)
    return str(path)


def gated(path: str, count: int = 3, **options: Any) -> Program:
    return Program("gated", (1.0,) * count, {"gate": path, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_merge_and_no_amount_is_merge(kind: str, tmp_path: Path) -> None:
    pipe = tiny_pipeline(kind)
    adapters = adapters_for(pipe)
    with attach(pipe, adapters, "merge"):
        merged = run(pipe)
    start = saved(pipe, Form.ours(), tmp_path / "start", start=True)
    far = saved(pipe, Form.ours(), tmp_path / "far")
    with attach(pipe, adapters, gated(start)):
        assert relative(run(pipe), merged) < 1e-5
    with attach(pipe, adapters, gated(far)) as attachment:
        strong = run(pipe)
        attachment.set_program(gated(far, amount=0.0))
        assert relative(run(pipe), merged) < 1e-5
        attachment.set_program("merge")
        assert relative(run(pipe), merged) < 1e-6
    assert relative(strong, merged) > 1e-3
    assert not any(hasattr(module, "gating") for module in denoiser_of(pipe)[1].modules())


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_and_accelerators_are_not_gated(kind: str, tmp_path: Path) -> None:
    pipe = tiny_pipeline(kind)
    adapters, path = adapters_for(pipe), saved(pipe, Form.ours(), tmp_path / "gate")
    with attach(pipe, adapters[:1], "merge", [0.9]):
        alone = run(pipe)
    with attach(pipe, adapters, replace(gated(path), weights=(0.9, 0.0, 0.0))):
        assert relative(run(pipe), alone) < 1e-5
    with attach(pipe, adapters[:2], "merge"):
        two = run(pipe)
    with attach(pipe, adapters[:2], replace(gated(path, 2), always=(0,))):
        assert torch.equal(run(pipe), two)
    with attach(pipe, adapters, replace(gated(path), always=(0,))):
        assert relative(run(pipe), two) > 1e-4


def test_a_batch_of_methods_equals_single_images(tmp_path: Path) -> None:
    pipe = tiny_pipeline("sd15")
    adapters, path = adapters_for(pipe), saved(pipe, Form.ours(), tmp_path / "gate")
    programs = [gated(path), Program("merge", (1.0, 0.5, 1.0)), Program("composite", (1.0, 1.0, 1.0))]
    prompts = ["an apple"] * 3

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(n) for n in range(3)]

    def drawn(count: slice, program: Any) -> Tensor:
        with attach(pipe, adapters, program), torch.no_grad():
            found: Tensor = pipe(
                prompts[count], generator=generators()[count], output_type="latent", num_inference_steps=3,
                guidance_scale=3.0, height=32, width=32,
            ).images  # fmt: skip
        return found

    together = drawn(slice(3), programs)
    for place, program in enumerate(programs):
        assert relative(together[place : place + 1], drawn(slice(place, place + 1), program)) < 1e-5


def test_other_adapters_in_the_same_layers_are_gated_anew(tmp_path: Path) -> None:
    pipe = tiny_pipeline("sd15")
    adapters, path = adapters_for(pipe), saved(pipe, Form.ours(), tmp_path / "gate")
    with attach(pipe, adapters[:2], gated(path, 2)):
        wanted = run(pipe)
    from loracomp.pipeline import Capacity

    with attach(pipe, adapters, gated(path), capacity=Capacity(16)) as attachment:
        run(pipe)
        attachment.swap(adapters[:2], gated(path, 2))
        assert relative(run(pipe), wanted) < 1e-5


def test_missing_damaged_and_foreign_gates_are_refused(tmp_path: Path) -> None:
    pipe, other = tiny_pipeline("sd15"), tiny_pipeline("flux")
    adapters = adapters_for(pipe)
    with pytest.raises(ResourceError, match="train one"):
        attach(pipe, adapters, gated(str(tmp_path / "none")))
    broken = tmp_path / "broken"
    broken.write_bytes(b"no gate")
    with pytest.raises(FormatError, match="not a gate"):
        attach(pipe, adapters, gated(str(broken)))
    with pytest.raises(BaseMismatchError, match="the gate"):
        attach(pipe, adapters, gated(saved(other, Form.ours(), tmp_path / "flux")))
    detach(pipe)
    with pytest.raises(UsageError, match="outside"):
        METHODS["gated"](torch.ones(2), 4, amount=3)


def test_a_gate_comes_back_as_it_was_written(tmp_path: Path) -> None:
    form = Form.ours(time=2, cross=False)
    gate = GateWeights(form, "glyph", {"unet.a": noisy(form, 5).half().float()}, {"subjects": ["x"]})
    gate.save(tmp_path / "gate")
    back = GateWeights.load(tmp_path / "gate")
    assert (back.form, back.base, back.record) == (form, "glyph", {"subjects": ["x"]})
    assert torch.equal(back.layers["unet.a"], gate.layers["unet.a"])
    assert back.digest == gate.digest


@pytest.mark.parametrize("kind", ["sd15", "flux"])
@pytest.mark.parametrize("form", [Form.published("T"), Form.ours(global_rank=2, joint=True)])
def test_the_global_adapter_on_the_engine(kind: str, form: Form, tmp_path: Path) -> None:
    pipe = tiny_pipeline(kind)
    adapters, path = adapters_for(pipe), saved(pipe, form, tmp_path / "gate")
    with attach(pipe, adapters, gated(path)):
        with_it = run(pipe)
    rows = GateWeights.load(tmp_path / "gate")
    GateWeights(replace(form, global_rank=0), rows.base, rows.layers).save(tmp_path / "less")
    with attach(pipe, adapters, gated(str(tmp_path / "less"))):
        assert relative(run(pipe), with_it) > 1e-4
    with attach(pipe, adapters, replace(gated(path), weights=(0.0, 0.0, 0.0))):
        silent = run(pipe)
    assert relative(silent, run(pipe)) < 1e-6
    if form.solo:
        with attach(pipe, adapters[:1], "merge"):
            alone = run(pipe)
        with attach(pipe, adapters, replace(gated(path), weights=(1.0, 0.0, 0.0))):
            assert relative(run(pipe), alone) < 1e-5
