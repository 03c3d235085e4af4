"""What an unfinished training run has learned, drawn from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loracomp.app import thumbnails
from loracomp.app.engine import Engine

if TYPE_CHECKING:
    from loracomp.adapter import Adapter
    from loracomp.app.workers import Control

_STEPS, _SEED = 12, 7


def draw_sample(engine: Engine, out: Path, target: Path, control: Control) -> None:
    """Draws the trigger words, or a sample prompt, with the latest checkpoint of the run that writes ``out``.

    Raises:
        TrainingError: There is no checkpoint.
        StoppedError: The job has to end.
    """
    from loracomp.pipeline import compose
    from loracomp.training.checkpoint import read_progress
    from loracomp.training.config import load_dump

    config = load_dump(read_progress(out).config)
    prompt = (*config.sample_prompts, ", ".join(config.trigger) or config.name)[0]
    adapter = learned(out, config.base, config.scale_alpha)
    with engine.pipe() as pipe:
        images = compose(
            pipe,
            prompt,
            [adapter],
            seed=_SEED,
            on_step=lambda done, total: control.check(),
            num_inference_steps=config.sample_steps or _STEPS,
        )
    thumbnails.shrink(images[0], target)


def learned(out: Path, base: str, alpha: float) -> Adapter:
    """The adapter as it stands in the checkpoint of the run that writes ``out``."""
    from safetensors import safe_open

    from loracomp.adapter import Adapter
    from loracomp.lowrank import LowRank
    from loracomp.training.checkpoint import state_path

    with safe_open(state_path(out), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("weight/") and name.endswith(".down")]  # noqa: SIM118
        layers = {
            name.removeprefix("weight/").removesuffix(".down"): LowRank(
                file.get_tensor(name).float(),
                file.get_tensor(f"{name.removesuffix('.down')}.up").float(),
                alpha,
            )
            for name in names
        }
    return Adapter(layers, base, name="sample")
