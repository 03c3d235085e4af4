"""The roles method: merge by default, and factors where it says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import layer_table, random_adapter, run, tiny_pipeline

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import Curve, Profile, Program
from loracomp.pipeline import attach
from loracomp.pipeline.facts import resolve


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline("sd15")


def pair(pipe: Any) -> list[Adapter]:
    suffixes = ("to_q", "to_v", "conv1", "q_proj")
    return [random_adapter(layer_table(pipe), suffixes, seed=n, size=0.3, name=f"a{n}") for n in range(2)]


def drawn(pipe: Any, program: Program) -> torch.Tensor:
    with attach(pipe, pair(pipe), program):
        return run(pipe, num_inference_steps=5)


def test_by_default_it_is_merge(pipe: Any) -> None:
    ours, merge = (drawn(pipe, Program(method, (0.9, 0.7))) for method in ("roles", "merge"))
    torch.testing.assert_close(ours, merge, atol=1e-5, rtol=1e-5)


def test_it_is_merge_with_curves_blocks_and_halves(pipe: Any) -> None:
    options = {
        "handover": 0.4, "early": [1.5, 0.0], "late": [0.5, 1.2], "up": [0.0, 2.0], "mid": [1.0, 0.5],
        "unconditional": [0.25, 0.75],
    }  # fmt: skip
    ours = drawn(pipe, Program("roles", (0.9, 0.7), options))
    profiles = (
        Profile(Curve(((0, 1.5), (0.4, 0.5))), {"up": 0.0}, 0.25),
        Profile(Curve(((0, 0.0), (0.4, 1.2))), {"up": 2.0, "mid": 0.5}, 0.75),
    )
    torch.testing.assert_close(
        ours, drawn(pipe, Program("merge", (0.9, 0.7), profiles=profiles)), atol=1e-5, rtol=1e-5
    )
    swapped = drawn(pipe, Program("roles", (0.9, 0.7), options | {"roles": ["style", "subject"]}))
    assert float((ours - swapped).norm() / ours.norm()) > 1e-3


def test_roles_come_from_headers(pipe: Any) -> None:
    plain = pair(pipe)
    tagged = [
        replace(a, metadata={"modelspec.tags": t})
        for a, t in zip(plain, ("style, x", "Subject"), strict=True)
    ]
    assert resolve(pipe, "x", tagged, Program("roles")).options["roles"] == ["style", "subject"]
    assert resolve(pipe, "x", plain, Program("roles")).options["roles"] == ["subject", "style"]
    own = Program("roles", options={"roles": ["style", "style"]})
    assert resolve(pipe, "x", tagged, own) == own


@pytest.mark.parametrize(
    "options", [{"early": 1}, {"up": [1]}, {"handover": 2}, {"roles": ["x"]}, {"mid": "ab"}]
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Program("roles", (1.0, 1.0), options).table(4)
