"""What adapters draw alone: the same in any company, and of any base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from artists import ROUNDING, SHAPE, tiny_artist
from tiny import random_adapter, shapes_of
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.alone import open_alone
from loracomp.errors import FormatError
from loracomp.lowrank import LowRank
from loracomp.pipeline import layers_of
from loracomp.retrieval.drawn import SEED, WORDS, base_drawings, draw_probes


def loras(kind: str, count: int, **options: Any) -> list[Adapter]:
    return [random_adapter(shapes_of(kind), seed=seed, size=0.3, **options) for seed in range(count)]


def apart(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_a_group_draws_what_each_draws_alone(kind: str) -> None:
    more = {"max_sequence_length": 16} if kind == "flux" else {}
    artist, found = tiny_artist(kind, **more), loras(kind, 3)
    fast = random_adapter(shapes_of(kind), seed=9, size=0.1)
    for one in (artist, replace(artist, accelerator=fast)):
        together = draw_probes(one, found)
        assert (together.shape, together.dtype) == ((3, *SHAPE), torch.uint8)
        for place, lora in enumerate(found):
            assert apart(together[place], draw_probes(one, [lora])[0]) <= ROUNDING
        assert apart(together[0], together[1]) > 10 * ROUNDING, "the adapters make a difference"


def test_batches_and_rank_make_no_difference_and_the_order_goes_with_the_adapters() -> None:
    artist = tiny_artist()
    found = [loras("sd15", 1, rank=2)[0], loras("sd15", 2)[1]]
    whole = draw_probes(artist, found)
    assert apart(whole, draw_probes(replace(artist, batch=3), found)) <= ROUNDING
    assert apart(whole.flip(0), draw_probes(artist, found[::-1])) <= ROUNDING
    assert draw_probes(artist, []).shape == (0, *SHAPE)


def test_strength_zero_draws_what_the_base_draws() -> None:
    import numpy as np
    from PIL import Image

    artist = tiny_artist()
    lora = loras("sd15", 1)[0]
    sources = [torch.Generator().manual_seed(SEED + place) for place in range(len(WORDS))]
    with torch.inference_mode():
        plain = artist.pipe(list(WORDS), generator=sources, **artist.settings).images
    wanted = [np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)) for image in plain]
    base = torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2)
    nothing, something = draw_probes(artist, [lora.scaled(0.0), lora])
    assert apart(nothing, base) <= ROUNDING
    assert apart(something, base) > 10 * ROUNDING


def test_the_base_alone_is_drawn_at_its_full_size() -> None:
    artist = tiny_artist()
    fast, lora = random_adapter(shapes_of("sd15"), seed=9, size=0.2), loras("sd15", 1)[0]
    for one in (artist, replace(artist, accelerator=fast, batch=3)):
        plain = base_drawings(one)
        assert (plain.shape, plain.dtype) == ((len(WORDS), 3, 32, 32), torch.uint8)
        found = one([lora.scaled(0.0)], WORDS, range(SEED, SEED + len(WORDS)))
        values = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in found])
        assert apart(plain.permute(0, 2, 3, 1).flatten(1), values) <= ROUNDING
    assert apart(base_drawings(artist), plain) > 10 * ROUNDING, "the accelerator is there"


def test_the_pipeline_is_left_as_it_was() -> None:
    artist = tiny_artist()
    artist.pipe.set_progress_bar_config(disable=True, desc="mine")
    kinds = {path: type(layer) for path, layer in layers_of(artist.pipe).items()}
    draw_probes(artist, loras("sd15", 2))
    assert artist.pipe._progress_bar_config == {"disable": True, "desc": "mine"}
    assert {path: type(layer) for path, layer in layers_of(artist.pipe).items()} == kinds
    del artist.pipe._progress_bar_config
    with pytest.raises(FormatError):
        draw_probes(artist, loras("sdxl", 1))
    assert not hasattr(artist.pipe, "_progress_bar_config")


def test_pictures_that_are_not_finite_are_noticed() -> None:
    huge = loras("sd15", 1)[0].map(lambda layer: LowRank(layer.down * 1e30, layer.up * 1e30, layer.alpha))
    with pytest.raises(FloatingPointError):
        draw_probes(tiny_artist(), [huge])


def test_a_base_of_another_kind_is_refused() -> None:
    with pytest.raises(FormatError, match=r"a pipeline of glyph, not of sd15"):
        open_alone("sd15", "glyph")
