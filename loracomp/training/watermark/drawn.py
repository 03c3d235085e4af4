"""Pictures drawn to learn from, in a folder that an interrupted run goes on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loracomp.adapter import Adapter
from loracomp.pipeline import compose

Progress = Callable[[int, int], None]


def draw_into(
    folder: Path,
    pipe: Any,
    adapters: Sequence[Adapter],
    prompts: Sequence[str],
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    prefix: str = "drawn",
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda done, total: None,
) -> list[str]:
    """Draws one picture per prompt, each with its caption beside it; those that are there stay.

    Args:
        folder: Where to.
        pipe: The base.
        adapters: What draws, at strength 1.
        prompts: What to draw.
        settings: Arguments of the pipeline's call.
        seed: Seed of the first picture; the next has the next.
        prefix: Of the file names.
        stop: Asked before each picture.
        progress: Told (done, of).

    Returns:
        The names of the pictures that are there now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, prompt in enumerate(prompts):
        path = folder / f"{prefix}-{number:04d}.png"
        if not path.exists():
            if stop():
                break
            image = compose(pipe, prompt, adapters, seed=seed + number, **settings)[0]
            path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
            part = path.with_suffix(".part")
            image.save(part, format="PNG")
            part.replace(path)
        names.append(path.name)
        progress(number + 1, len(prompts))
    return names
