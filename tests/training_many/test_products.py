"""Stacked products against each sample's own dense layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from loracomp.training.many.products import Kernel, ShiftedSum, add_convolution, add_linear

SEATS, WIDTH, RANK = 3, 2, 4


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def _agree(found: torch.Tensor, expected: torch.Tensor, parts: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), parts),
        torch.autograd.grad((expected * weights).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("axes", [(), (5,), (2, 3)])
@pytest.mark.parametrize("scaled", [False, True])
def test_linear_layers(axes: tuple[int, ...], scaled: bool) -> None:
    torch.manual_seed(0)
    x, out = _random(SEATS * WIDTH, *axes, 6), _random(SEATS * WIDTH, *axes, 7)
    down, up = _random(SEATS, RANK, 6), _random(SEATS, 7, RANK)
    scales = torch.tensor([1.0, 0.5, 2.0]).reshape(SEATS, 1, 1) if scaled else None
    factors = [1.0, 0.5, 2.0] if scaled else [1.0] * SEATS
    own = [
        out[row] + factors[row // WIDTH] * x[row] @ down[row // WIDTH].T @ up[row // WIDTH].T
        for row in range(SEATS * WIDTH)
    ]
    _agree(add_linear(x, out, down, up, scales), torch.stack(own), [x, out, down, up])


KERNELS = [
    Kernel((1, 1), (1, 1), (0, 0), (1, 1)),
    Kernel((3, 3), (1, 1), (1, 1), (1, 1)),
    Kernel((3, 3), (2, 2), (1, 1), (1, 1)),
    Kernel((3, 3), (2, 2), (0, 0), (1, 1)),
    Kernel((3, 2), (2, 1), (1, 0), (1, 2)),
    Kernel((1, 1), (2, 2), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_convolutions(kernel: Kernel) -> None:
    torch.manual_seed(0)
    x = _random(SEATS * WIDTH, 5, 7, 8)
    weights, up = _random(SEATS, RANK, 5, *kernel.size), _random(SEATS, 6, RANK)
    geometry: dict[str, Any] = {
        "stride": kernel.stride, "padding": kernel.padding, "dilation": kernel.dilation,
    }  # fmt: skip
    own = [
        F.conv2d(
            F.conv2d(x[row : row + 1], weights[row // WIDTH], **geometry), up[row // WIDTH, ..., None, None]
        )
        for row in range(SEATS * WIDTH)
    ]
    expected = torch.cat(own)
    out = _random(*expected.shape)
    down = weights.permute(0, 3, 4, 1, 2).reshape(SEATS, -1, 5)
    found = add_convolution(x, out, down, up, None, kernel)
    _agree(found, expected + out, [x, out, weights, up])


def test_convolutions_compile_into_one_graph() -> None:
    kernel = KERNELS[1]
    x, out = _random(SEATS * WIDTH, 5, 4, 4), _random(SEATS * WIDTH, 6, 4, 4)
    down, up = _random(SEATS, 9 * RANK, 5), _random(SEATS, 6, RANK)

    def add(*parts: torch.Tensor) -> torch.Tensor:
        return add_convolution(*parts, None, kernel)

    compiled: Any = torch.compile(add, backend="aot_eager", fullgraph=True)
    _agree(compiled(x, out, down, up), add(x, out, down, up), [x, out, down, up])


@pytest.mark.parametrize("kernel", KERNELS[1:5], ids=str)
def test_the_sum_over_taps_has_the_right_gradient(kernel: Kernel) -> None:
    maps = _random(2, 4, 5, *kernel.size, 2)
    assert torch.autograd.gradcheck(lambda value: ShiftedSum.apply(value, kernel), (maps,))
