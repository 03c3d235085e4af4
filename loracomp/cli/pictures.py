"""Pictures that commands are given: opened, and put into words where there is a judge for the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loracomp.errors import UsageError

_SURE = 0.3
# Bases whose judge has the base's name.
_JUDGED = ("glyph",)


def open_picture(path: Path) -> Any:
    """The picture in a file, RGB or RGBA; raises :class:`UsageError` for anything else."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return file.convert("RGBA" if "A" in file.getbands() or "transparency" in file.info else "RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"{path}: not a picture that can be read ({error}); give a PNG or JPEG") from error


def describer(base: str) -> Callable[[Any], str] | None:
    """What puts a picture into words for a base: its judge; None where it has none."""
    if base not in _JUDGED:
        return None

    def describe(image: Any) -> str:
        import numpy as np
        import torch

        from loracomp.evaluation.judge import open_judge

        judge = open_judge(base)
        values = np.asarray(image.convert("RGB")).copy()
        pixels = torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255
        heads, styles = judge.subjects(pixels)[0], judge.styles(pixels)[0]
        said = [judge.vocabulary.subjects[judge.vocabulary.heads[int(heads.argmax())]]]
        if float(styles.max()) > _SURE:
            said.append(list(judge.vocabulary.styles.values())[int(styles.argmax())])
        return ", ".join(said)

    return describe
