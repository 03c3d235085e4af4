"""Gate programs as data, and that every step of every scheduler gets its own gates."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import layer_table, random_adapter, run, tiny_pipeline

from loracomp.errors import LoracompError, UsageError
from loracomp.fusion import METHODS, GateTable, Program
from loracomp.fusion.gates import GateBank
from loracomp.loading import SCHEDULERS
from loracomp.pipeline import attach, detach

weights = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=5)


@given(st.sampled_from(list(METHODS)), weights, st.integers(1, 60))
def test_every_method_gives_a_table(method: str, values: list[float], steps: int) -> None:
    table = Program(method, tuple(values)).table(steps)
    assert table.gates.shape == (steps, table.branches, len(values))
    torch.testing.assert_close(table.mix.sum(1), torch.ones(steps))
    allowed = torch.tensor([0.0, *values])
    assert torch.isin(table.gates, allowed).all()


@given(weights, st.integers(1, 60))
def test_merge_and_composite_say_what_they_are(values: list[float], steps: int) -> None:
    merged = Program("merge", tuple(values)).table(steps).gates
    assert (merged == torch.tensor(values)).all()
    spread = Program("composite", tuple(values)).table(steps)
    assert (spread.gates.sum(1) == torch.tensor(values)).all()
    assert ((spread.gates != 0).sum(2) <= 1).all()


@pytest.mark.parametrize(
    ("steps", "period", "turns"),
    [
        (8, 0.25, [0, 0, 1, 1, 2, 2, 0, 0]),
        (8, 0.125, [0, 1, 2, 0, 1, 2, 0, 1]),
        (8, 0.01, [0, 1, 2, 0, 1, 2, 0, 1]),
        (8, 1, [0] * 8),
        (100, 0.05, [k // 5 % 3 for k in range(100)]),
    ],
)
def test_switch_takes_turns(steps: int, period: float, turns: list[int]) -> None:
    gates = Program("switch", (1.0, 0.5, -1.0), {"period": period}).table(steps).gates[:, 0]
    assert gates.abs().argmax(1).tolist() == turns
    assert ((gates != 0).sum(1) == 1).all()


@given(st.sampled_from(list(METHODS)), weights, st.dictionaries(st.text(), st.integers()))
def test_a_program_survives_json(method: str, values: list[float], options: dict[str, int]) -> None:
    program = Program(method, tuple(values), options)
    assert Program.from_json(program.to_json()) == program


@given(st.text() | st.just("{}") | st.just('{"method": 1, "weights": 2, "options": 3}'))
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Program.from_json(text)


class Recorder:
    """Puts a program whose gate is the number of the step, and notes what the layers were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        write = GateBank.write

        def noted(bank: GateBank, rows: torch.Tensor, program: torch.Tensor | None = None) -> None:
            self.seen.append(int(rows[0, 0]))
            write(bank, rows, program)

        def table(_: Program, steps: int, sigmas: torch.Tensor | None = None) -> GateTable:
            return GateTable(torch.arange(steps).float()[:, None, None], torch.ones(steps, 1))

        monkeypatch.setattr(GateBank, "write", noted)
        monkeypatch.setattr(Program, "table", table)


def cases() -> list[tuple[str, str]]:
    flow = [("sd3", "flow"), ("flux", "flow")]
    return [("sd15", name) for name in SCHEDULERS if name != "flow"] + flow


@pytest.mark.filterwarnings("ignore:The `timesteps`")
@pytest.mark.parametrize(("kind", "scheduler"), cases())
def test_every_step_has_its_own_gates(kind: str, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe: Any = tiny_pipeline(kind)
    name, options = SCHEDULERS[scheduler]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    adapter = random_adapter(layer_table(pipe), ("attn2.to_q", "attn.to_q"), size=0.01)
    record = Recorder(monkeypatch)
    attach(pipe, [adapter])
    for steps in (5, 3):
        record.seen.clear()
        run(pipe, num_inference_steps=steps)
        assert record.seen == list(range(steps))
    detach(pipe)


def test_image_to_image_begins_where_its_noise_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_pipeline("sd15")
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**whole.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    record = Recorder(monkeypatch)
    with attach(pipe, [random_adapter(layer_table(pipe), ("attn2.to_q",))]):
        picture = torch.rand(1, 3, 32, 32)
        pipe("a cat", image=picture, strength=0.5, num_inference_steps=8, output_type="latent")
    assert record.seen == [4, 5, 6, 7]


def test_a_method_that_fails_says_so() -> None:
    with pytest.raises(LoracompError, match="method merge"):
        Program("merge", (1.0,), {"no_such_option": 1}).table(4)
