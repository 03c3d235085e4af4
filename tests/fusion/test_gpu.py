"""What only a GPU can show: compiled graphs, offloading, quantized weights, other attention, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tiny import KINDS, layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.evaluation.fidelity import check
from loracomp.evaluation.specimen import Bench
from loracomp.fusion import Curve, Profile, Program
from loracomp.pipeline import Capacity, attach, denoiser_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),
]
DEVICE = "cuda"
SUFFIXES = ("to_q", "to_v", "to_out.0", "ff.net.2", "proj_in", "conv1")


def scene(kind: str, dtype: torch.dtype = torch.float32, count: int = 3) -> tuple[Any, list[Adapter]]:
    pipe = tiny_pipeline(kind).to(DEVICE, dtype)
    shapes = layer_table(pipe)
    return pipe, [random_adapter(shapes, SUFFIXES, rank=2 + n, seed=n, name=f"a{n}") for n in range(count)]


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value.cpu() - reference.cpu()).norm() / reference.cpu().norm())


@contextmanager
def strict_floats() -> Iterator[None]:
    """Products in float32 as they are written, without tensor cores of fewer bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_all_laws_hold_on_the_gpu(kind: str, dtype: torch.dtype) -> None:
    with strict_floats():
        laws, _ = check(Bench(tiny_pipeline(kind).to(DEVICE, dtype), steps=3, side=32))
    assert [(law.name, law.error, law.limit) for law in laws if not law.holds] == []


@pytest.mark.parametrize("kind", ["sd15", "flux"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_graphs_stay_while_everything_changes(
    kind: str, mode: str, recompilations: Callable[[], Any]
) -> None:
    torch._dynamo.reset()
    pipe, adapters = scene(kind)
    programs = [
        Program("merge", (1.0, 0.5, -0.3)),
        Program("switch", (1.0, 0.5, 0.7)),
        Program(
            "merge", (0.2, 0.0, 1.0), profiles=(Profile(Curve(((0, 0), (0.5, 1)))), Profile(), Profile())
        ),
    ]
    with strict_floats():
        expected = []
        for program in programs:
            with attach(pipe, adapters, program):
                expected.append(run(pipe))
        room = Capacity(64, "default")
        with attach(pipe, adapters, programs[0], capacity=room, compile={"mode": mode}) as attachment:
            assert relative(run(pipe), expected[0]) < 1e-4
            with recompilations() as count:
                for program, reference in zip(programs, expected, strict=True):
                    attachment.set_program(program)
                    assert relative(run(pipe), reference) < 1e-4
                attachment.swap(adapters[:1], "merge")
                swapped = run(pipe)
                assert count() == 0
        with attach(pipe, adapters[:1]):
            assert relative(swapped, run(pipe)) < 1e-4


def _waits(pipe: Any, prepare: Callable[[], Any]) -> bool:
    """Whether a call of the denoiser, repeated from a run, waits for the GPU anywhere."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    denoiser = denoiser_of(pipe)[1]

    def spy(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    with prepare(), torch.no_grad():
        handle = denoiser.register_forward_pre_hook(spy, with_kwargs=True)
        run(pipe)
        handle.remove()
        args, kwargs = calls[-1]
        denoiser(*args, **kwargs)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            denoiser(*args, **kwargs)
        except RuntimeError as error:
            assert "synchroniz" in str(error)
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_does_not_wait_for_the_gpu(kind: str) -> None:
    pipe, adapters = scene(kind)
    if _waits(pipe, nullcontext):
        pytest.skip("this denoiser waits by itself")
    assert not _waits(pipe, lambda: attach(pipe, adapters, "switch"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_changes_nothing(kind: str, way: str) -> None:
    plain, adapters = scene(kind)
    with strict_floats():
        with attach(plain, adapters, "merge", [1.0, 0.5, -0.3]):
            expected = run(plain)
        pipe = tiny_pipeline(kind)
        getattr(pipe, way)(device=DEVICE)
        before = run(pipe)
        with attach(pipe, adapters, "merge", [1.0, 0.5, -0.3]):
            for _ in range(2):
                assert relative(run(pipe), expected) < 1e-5
        assert torch.equal(run(pipe), before)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_xformers_draws_what_torch_s_attention_draws(kind: str) -> None:
    pytest.importorskip("xformers")
    pipe, adapters = scene(kind, torch.float16)
    with attach(pipe, adapters, "merge", [1.0, 0.5, -0.3]):
        expected = run(pipe)
        bare = run(tiny_pipeline(kind).to(DEVICE, torch.float16))
        pipe.enable_xformers_memory_efficient_attention()
        ours = run(pipe)
    assert relative(ours, expected) < 2e-2
    assert relative(ours, bare) > 5 * relative(ours, expected)


def _eight_bits(model: nn.Module) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())


def _four_bits(model: nn.Module) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and min(layer.weight.shape) >= 16:
            packed = bitsandbytes.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                torch.bfloat16,
                quant_type="nf4",
            )
            packed.load_state_dict(layer.state_dict(), strict=False)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, packed.to(DEVICE))


def _weight_of(layer: nn.Module, width: int) -> Tensor:
    """The weight that a layer multiplies with, read off its outputs."""
    bias: Any = layer.bias
    ones = layer(torch.eye(width, device=DEVICE, dtype=torch.bfloat16))
    return (ones if bias is None else ones - bias).T.detach()


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("quantize", [_eight_bits, _four_bits], ids=["int8", "nf4"])
def test_adapters_on_quantized_weights(kind: str, quantize: Callable[[nn.Module], None]) -> None:
    pipe, adapters = scene(kind, torch.bfloat16)
    reference, _ = scene(kind, torch.bfloat16)
    quantize(pipe.transformer)
    with torch.no_grad():
        for path, layer in reference.transformer.named_modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(_weight_of(pipe.transformer.get_submodule(path), layer.in_features))
    weights = [1.0, 0.5, -0.3]
    before = run(pipe)
    with attach(pipe, adapters, "merge", weights):
        ours = run(pipe)
    with attach(reference, adapters, "merge", weights):
        expected = run(reference)
    assert relative(ours, expected) < 3e-2
    assert relative(ours, before) > 3 * relative(ours, expected)
    assert torch.equal(run(pipe), before)
