"""The stacked optimiser against torch's own, one per adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loracomp.training.config import make_config
from loracomp.training.many.adamw import IDLE, row_of, update
from loracomp.training.many.places import Place
from loracomp.training.many.stack import Stack
from loracomp.training.schedule import rate_of


def _stack(seats: int) -> Stack:
    layer = nn.Linear(6, 5)
    return Stack([Place("unet.layer", layer, (5, 6), None)], seats, 3, torch.device("cpu"), False)


def _config(**values: Any) -> Any:
    return make_config({"name": "x", "kind": "style", "rank": 2, "steps": 20, **values})


def test_every_seat_steps_as_torch_does() -> None:
    configs = [
        _config(lr=1e-2),
        _config(lr=3e-3, weight_decay=0.2, betas=(0.7, 0.9), clip=0.1),
        _config(lr=5e-2, schedule="constant", warmup=0, clip=100.0),
    ]
    stack, begins = _stack(3), (0, 4, 7)
    torch.manual_seed(0)
    stack.values.normal_()
    singles = [nn.Parameter(row.clone()) for row in stack.values]
    optimizers = [
        torch.optim.AdamW([p], lr=c.lr, betas=c.betas, weight_decay=c.weight_decay)
        for p, c in zip(singles, configs, strict=True)
    ]
    for tick in range(12):
        grads = torch.randn(3, stack.values.shape[1]) * 10 ** (tick % 3 - 1)
        rows = []
        for seat, (config, begin) in enumerate(zip(configs, begins, strict=True)):
            step = tick - begin
            if step < 0:
                grads[seat] = 0
                rows.append(IDLE)
                continue
            singles[seat].grad = grads[seat].clone()
            nn.utils.clip_grad_norm_([singles[seat]], config.clip)
            optimizers[seat].param_groups[0]["lr"] = rate_of(config, step)
            optimizers[seat].step()
            rows.append(row_of(config, step))
        stack.grads.copy_(grads)
        norms = update(stack, torch.tensor(rows).T[:, :, None])
        torch.testing.assert_close(norms, grads.norm(dim=1))
        torch.testing.assert_close(stack.values, torch.stack(singles).detach(), rtol=1e-5, atol=1e-6)


def test_padding_of_ranks_and_layers_left_alone_stay_zero() -> None:
    """Their gradients are exactly zero, so no mask is needed."""
    torch.manual_seed(0)
    layer, other = nn.Linear(6, 5), nn.Linear(5, 4)
    places = [Place("unet.a", layer, (5, 6), None), Place("unet.b", other, (4, 5), None)]
    stack = Stack(places, 2, 3, torch.device("cpu"), False)
    config = _config(lr=0.1, warmup=0)
    stack.begin(0, stack.fresh(config, frozenset({"unet.a"})))
    stack.begin(1, stack.fresh(_config(rank=3, seed=1), frozenset({"unet.a", "unet.b"})))
    stack.install()
    for step in range(3):
        stack.grads.zero_()
        stack.collect((other(layer(torch.randn(4, 6))) - 1).square().sum())
        update(stack, torch.tensor([row_of(config, step)] * 2).T[:, :, None])
    stack.remove()
    down, up, absent = stack.values[0].split([18, 15, sum(stack.sizes) - 33])
    assert bool(down.reshape(3, 6)[:2].all())
    assert not bool(down.reshape(3, 6)[2].any())
    assert not bool(up.reshape(5, 3)[:, 2].any())
    assert not bool(absent.any())
    assert bool(stack.values[1].all())
    assert not layer._forward_hooks
    found = stack.updates(stack.values[0].detach(), config, frozenset({"unet.a"}))
    assert found["unet.a"].rank == 2
