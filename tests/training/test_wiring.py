"""The denoiser is called in training as the pipeline calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loracomp.pipeline import denoiser_of
from loracomp.training.cache import encode, fingerprint
from loracomp.training.dataset import read_dataset
from loracomp.training.objective import Objective
from loracomp.training.order import Chances, draw
from loracomp.training.wiring import (
    encode_captions,
    pack,
    patch_positions,
    prediction_of,
    unpack,
    wiring_of,
)


class Ear:
    """Remembers the arguments of a module's calls by parameter name."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.calls: list[dict[str, Any]] = []
        self.names = ("sample", "timestep") if hasattr(model.config, "sample_size") else ()
        self.handle = model.register_forward_pre_hook(self._hear, with_kwargs=True)

    def _hear(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append(dict(zip(self.names, args, strict=False)) | kwargs)


def _tensors(call: dict[str, Any]) -> dict[str, torch.Tensor]:
    nested = call.get("added_cond_kwargs") or {}
    return {key: value for key, value in {**call, **nested}.items() if isinstance(value, torch.Tensor)}


def test_arguments_are_those_of_the_pipeline(pipe: Any) -> None:
    model = denoiser_of(pipe)[1]
    ear = Ear(model)
    pipe("a circle", guidance_scale=1.0, num_inference_steps=2, height=32, width=32, output_type="latent")
    theirs = _tensors(ear.calls[0])
    noisy = theirs.get("sample", theirs.get("hidden_states"))
    assert noisy is not None
    if noisy.ndim == 3:
        noisy = unpack(noisy, 16, 16)
    states = encode_captions(pipe, ["a circle"], pipe.device) | {"side": torch.tensor([32.0])}
    level = theirs["timestep"].reshape(-1).float()
    timesteps = level * 1000 if "img_ids" in theirs else level
    with torch.no_grad():
        out = wiring_of(pipe).predict(model, noisy, timesteps, states)
    ear.handle.remove()
    ours = _tensors(ear.calls[-1])
    assert out.shape == noisy.shape
    assert set(ours) == set(theirs)
    for name in set(theirs) - {"guidance"}:
        mine = ours[name].float().reshape(-1)
        torch.testing.assert_close(mine, theirs[name].float().reshape(-1), atol=1e-4, rtol=1e-4, msg=name)


def test_packing_is_that_of_diffusers_and_inverts() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 3, 4, 6))
    assert torch.equal(unpack(pack(latents), 4, 6), latents)
    ids = FluxPipeline._prepare_latent_image_ids(1, 2, 3, torch.device("cpu"), torch.float32)
    assert torch.equal(patch_positions(2, 3), ids)


def test_predictions_follow_the_scheduler(pipe: Any) -> None:
    flow = type(pipe.scheduler).__name__.startswith("FlowMatch")
    assert prediction_of(pipe) == ("flow" if flow else "epsilon")


def test_a_batch_is_the_mean_of_its_samples(pipe: Any, folder: Any) -> None:
    """The loss treats samples one by one: text, sizes and latents are matched row by row."""
    from loracomp.training.cache import DiskCache

    data = read_dataset(folder)
    encoded = encode(
        pipe, data, data.captions((), "x"), resolution=32, variants=1, with_text=True, cache=DiskCache(None)
    )
    objective = Objective(pipe, encoded, None, False, 32)
    batch = draw(0, 0, 3, 4, objective.latent_shape, Chances(empty=0.3))
    with torch.no_grad():
        together = float(objective.loss(batch))
        fields = vars(batch)
        alone = [
            float(objective.loss(type(batch)(**{key: value[row : row + 1] for key, value in fields.items()})))
            for row in range(3)
        ]
    assert together == pytest.approx(sum(alone) / 3, rel=1e-4)


def test_fingerprints_tell_weights_apart() -> None:
    one = torch.nn.Linear(300, 300)
    before = fingerprint(one)
    assert fingerprint(one) == before
    with torch.no_grad():
        one.weight += 1e-4
    assert fingerprint(one) != before
