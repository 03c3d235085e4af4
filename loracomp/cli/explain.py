"""What ``compose --explain`` adds: the gate's doings as pictures, and as a table that replaces it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.pipeline import Attachment
    from loracomp.pipeline.explaining import Explanation
    from loracomp.recipe import Recipe


class Explainer:
    """Draws a recipe while watching its gate, then without the gate, to compare.

    Args:
        prefix: Files are called PREFIX-layers.png, PREFIX-maps.png, PREFIX-table.json.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._explanation: Explanation | None = None

    def attached(self, attachment: Attachment) -> None:
        """To be called with the attachment before the first step."""
        from loracomp.pipeline.explaining import Explanation

        self._explanation = Explanation(attachment)

    def write(self, drawn: list[tuple[Any, Recipe]], again: Callable[[Recipe], Any]) -> dict[str, Any]:
        """Writes the files; what they are called and what the table loses.

        Args:
            drawn: Pictures and recipes.
            again: Draws the first picture of a recipe.
        """
        from loracomp.fusion.gated.chart import layers_chart, maps_chart
        from loracomp.fusion.gated.static import write_table

        if self._explanation is None:
            raise UsageError("--explain shows the gates of --method gated with two adapters or more")
        picture, recipe = drawn[0]
        seen, names = self._explanation.seen(), [use.name for use in recipe.uses]
        files = {part: self._file(part) for part in ("layers.png", "maps.png", "table.json")}
        layers_chart(seen, names).save(files["layers.png"])
        maps_chart(seen, names, picture).save(files["maps.png"])
        write_table(files["table.json"], seen, names)
        table = {**recipe.options, "table": str(files["table.json"])}
        others = {
            "table": again(_plain(recipe, recipe.method, table)),
            "merge": again(_plain(recipe, "merge", {})),
        }
        return {
            "files": [str(path) for path in files.values()],
            "unexplained": round(seen.spread, 4),
            "psnr": {name: round(_psnr(picture, other), 2) for name, other in others.items()},
        }

    def _file(self, part: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}-{part}")


def told(found: dict[str, Any]) -> list[str]:
    """An explanation in lines."""
    psnr, share = found["psnr"], 100 * found["unexplained"]
    return [
        *found["files"],
        f"constants by layer and step miss {share:.1f} % of the energy that the gate lets through; "
        f"likeness to the gated picture: the table's {psnr['table']:.1f} dB, merge's {psnr['merge']:.1f} dB",
    ]


def _plain(recipe: Recipe, method: str, options: dict[str, Any]) -> Recipe:
    """The recipe of one picture by another method."""
    programs = tuple({**parts, "method": method, "options": options} for parts in recipe.programs)
    return replace(recipe, method=method, options=options, programs=programs, batch=1, index=0)


def _psnr(one: Any, other: Any) -> float:
    """Peak signal-to-noise ratio in dB, at most 99."""
    import numpy as np

    values = [np.asarray(image.convert("RGB"), dtype=np.float64) / 255 for image in (one, other)]
    error = float(((values[0] - values[1]) ** 2).mean())
    return 99.0 if error == 0 else min(99.0, -10 * float(np.log10(error)))
