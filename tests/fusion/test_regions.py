"""Masks as gates per token: no change where they are 1, the base where they are 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from predictions import Predictions, images, relative
from tiny import layer_table, random_adapter, run, tiny_pipeline
from torch import Tensor, nn

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion import Profile, Program
from loracomp.fusion.regions import Grid, box_mask, is_spatial, lay, presence, strengths
from loracomp.fusion.stacked import StackedUpdate
from loracomp.lowrank import LowRank
from loracomp.pipeline import attach, denoiser_of

SUFFIXES = ("to_q", "to_k", "to_v", "ff.net.2", "conv1", "conv", "proj_in", "add_k_proj")
LEFT = box_mask((0, 0, 0.5, 1))


def adapters(pipe: Any, count: int = 2, suffixes: tuple[str, ...] = SUFFIXES) -> list[Adapter]:
    """Adapters of the denoiser alone."""
    shapes = {path: shape for path, shape in layer_table(pipe).items() if not path.startswith("text")}
    return [random_adapter(shapes, suffixes, rank=2 + n, seed=n) for n in range(count)]


def test_a_mask_of_ones_is_no_mask_bit_for_bit(pipe: Any) -> None:
    chosen = adapters(pipe)
    with attach(pipe, chosen, weights=[0.8, 0.6]):
        plain = run(pipe)
    with attach(pipe, chosen, weights=[0.8, 0.6], masks=[torch.ones(50, 31), None]):
        assert torch.equal(run(pipe), plain)
    with attach(pipe, chosen, Program("merge", (0.8, 0.6), profiles=(Profile(box=(0, 0, 1, 1)),) * 2)):
        assert torch.equal(run(pipe), plain)


def test_a_mask_of_zeros_is_an_adapter_less(pipe: Any) -> None:
    chosen = adapters(pipe)
    with attach(pipe, chosen, masks=[torch.zeros(8, 8), torch.zeros(1, 1)]):
        nothing = run(pipe)
    assert torch.equal(nothing, run(pipe))
    with attach(pipe, chosen, masks=[torch.zeros(8, 8), None]):
        ours = run(pipe)
    with attach(pipe, chosen[1:]):
        assert relative(ours, run(pipe)) < 1e-6


def test_an_even_mask_is_a_weight(pipe: Any) -> None:
    suffixes = ("attn1.to_q", "attn1.to_k", "attn2.to_q", "ff.net.2", "conv1", "conv", "proj_in")
    transformer = ("blocks.0.attn.to_q", "blocks.0.attn.to_v", "blocks.0.ff.net.2", "blocks.0.ff.net.0.proj")
    suffixes = suffixes if denoiser_of(pipe)[0] == "unet" else transformer
    chosen = adapters(pipe, 2, suffixes)
    # FLUX's single blocks see text and image in one sequence; text keeps its strength there.
    chosen = [Adapter({p: v for p, v in a.layers.items() if "single" not in p}, "custom") for a in chosen]
    assert all(is_spatial(path) for path in chosen[0].layers)
    with attach(pipe, chosen, weights=[1.0, 0.7], masks=[torch.full((16, 16), 0.25), None]):
        masked = run(pipe)
    with attach(pipe, chosen, weights=[0.25, 0.7]):
        assert relative(masked, run(pipe)) < 1e-5


LAST = {
    "sd15": "unet.conv_out",
    "sdxl": "unet.conv_out",
    "sd3": "transformer.proj_out",
    "flux": "transformer.proj_out",
}


def spatial(prediction: Tensor, side: int = 16) -> Tensor:
    """A prediction with height and width last; FLUX's tokens are 2 × 2 pixels each."""
    if prediction.ndim == 4:
        return prediction
    return prediction.mT.unflatten(2, (side // 2, side // 2))


@pytest.mark.parametrize("kind", LAST)
def test_each_half_of_the_image_gets_its_own_adapter(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    shapes = {path: shape for path, shape in layer_table(pipe).items() if path == LAST[kind]}
    chosen = [random_adapter(shapes, ("",), seed=seed) for seed in range(2)]

    def first(weights: list[float], **masks: Any) -> Tensor:
        with attach(pipe, chosen, weights=weights, **masks), Predictions(pipe) as seen:
            run(pipe, num_inference_steps=1)
        return spatial(seen[0])

    both = first([1.0, 1.0], masks=[LEFT, 1 - LEFT])
    left, right = first([1.0, 0.0]), first([0.0, 1.0])
    middle = both.shape[-1] // 2
    assert relative(both[..., :middle], left[..., :middle]) < 1e-6
    assert relative(both[..., middle:], right[..., middle:]) < 1e-6
    assert relative(left, right) > 1e-3


class Pointwise(nn.Module):
    """Convolutions and linear layers that see one pixel each, and halve the picture in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Linear(6, 6)
        self.shrink, self.last = nn.Conv2d(6, 6, 1, stride=2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        tokens = self.second(x.flatten(2).mT).tanh()
        return self.last(self.shrink(tokens.mT.unflatten(2, x.shape[2:])).tanh())


@torch.no_grad()
def test_pixels_of_disjoint_regions_are_those_of_single_adapters() -> None:
    torch.manual_seed(0)
    net, x = Pointwise(), torch.randn(3, 3, 8, 6)
    layers = [nn.Module.get_submodule(net, name) for name in ("first", "second", "shrink", "last")]
    updates = {}
    for path, module in zip("abcd", layers, strict=True):
        shape = tuple(module.weight.shape)  # type: ignore[arg-type]
        tail = (1,) * (len(shape) - 2)
        pairs = [
            (i, LowRank(torch.randn(2 + i, shape[1], *tail), torch.randn(shape[0], 2 + i, *tail)))
            for i in (0, 1)
        ]
        updates[path] = StackedUpdate(pairs, module)

    def output(gates: list[float], masks: list[Tensor | None]) -> Tensor:
        for update in updates.values():
            update.gate = (torch.tensor(gates)[update.owner] * update.scale)[None]
        layout = [Grid(8, 6), Grid(4, 3)]
        lay(updates, masks, layout, torch.arange(3), torch.device("cpu")).show(slice(None))
        return net(x)

    top = torch.zeros(8, 6)
    top[:4] = 1
    both = output([1.0, 1.0], [top, 1 - top])
    for rows, gates in ((slice(0, 2), [1.0, 0.0]), (slice(2, 4), [0.0, 1.0])):
        assert relative(both[:, :, rows], output(gates, [None, None])[:, :, rows]) < 1e-6
    # One mask per image.
    own = torch.stack([torch.ones_like(top), top, torch.zeros_like(top)])
    each = output([1.0, 0.0], [own, None])
    for image, mask in enumerate(own):
        assert relative(each[image], output([1.0, 0.0], [mask, None])[image]) < 1e-6


def test_other_tokens_around_the_image_keep_their_strength() -> None:
    gates = strengths([torch.zeros(4, 4), None], Grid(2, 3, before=5, after=1))
    assert gates.shape == (1, 12, 2)
    assert gates[0, :, 0].tolist() == [1.0] * 5 + [0.0] * 6 + [1.0]
    assert (gates[..., 1] == 1).all()


def test_masks_are_averaged_over_the_area_of_a_token() -> None:
    mask = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    assert strengths([mask], Grid(1, 2))[0, :, 0].tolist() == [0.75, 0.0]
    assert presence([mask, torch.zeros(2, 2), None]).tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize("chunk", [0, 3])
def test_every_image_of_a_batch_has_its_own_regions(pipe: Any, chunk: int) -> None:
    chosen = adapters(pipe)
    boxes: list[Any] = [(0, 0, 0.5, 1), None, (0.25, 0.5, 1, 1)]
    programs = [
        Program("composite" if box else "merge", (1.0, 0.5), profiles=(Profile(box=box), Profile()))
        for box in boxes
    ]
    seeds = [3, 4, 5]
    with attach(pipe, chosen, programs, chunk=chunk):
        together = images(pipe, ["a cat"] * 3, seeds)
    for index, program in enumerate(programs):
        with attach(pipe, chosen, program):
            assert relative(together[index : index + 1], images(pipe, ["a cat"], [seeds[index]])) < 1e-5
    mask = box_mask(boxes[2])
    with attach(pipe, chosen, programs[1]) as attachment:
        plain = run(pipe)
        attachment.set_masks([mask, None])
        masked = run(pipe)
        attachment.set_masks([])
        assert torch.equal(run(pipe), plain)
    assert relative(masked, plain) > 1e-5


def test_what_is_no_mask_is_refused(pipe: Any) -> None:
    chosen = adapters(pipe)
    for masks, why in (
        ([None], "1 masks for 2 adapters"),
        ([torch.ones(3), None], "shape"),
        ([torch.full((2, 2), 1.5), None], "outside 0"),
        ([torch.full((2, 2), float("nan")), None], "outside 0"),
    ):
        with pytest.raises(UsageError, match=why):
            attach(pipe, chosen, masks=masks)
    with pytest.raises(UsageError, match="left < right"):
        box_mask((0.5, 0, 0.5, 1))
