"""GlyphBench's run: every row of every cell is drawn, scored and written down.

The rows of a cell are the artist's original, the base without adapters, each adapter alone, and every
composition method with all of them; prompt and seeds are the same in all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from loracomp.adapter import Adapter
from loracomp.evaluation.artwork import Artwork
from loracomp.evaluation.cells import Cell, prompt
from loracomp.evaluation.judge import Judge
from loracomp.evaluation.ledger import Ledger, Record
from loracomp.evaluation.meter import Cost, measured
from loracomp.evaluation.pixels import as_images, as_tensor
from loracomp.evaluation.roster import Roster
from loracomp.evaluation.scores import score
from loracomp.evaluation.ways import way
from loracomp.pipeline import compose

if TYPE_CHECKING:
    from PIL.Image import Image

ARTIST = "artist"
NO_LORA = "no LoRA"


@dataclass(frozen=True)
class Row:
    """A way of making a cell's picture.

    Attributes:
        name: What tables call it.
        method: Way to compose, as :func:`loracomp.evaluation.ways.way` reads it; empty for the artist and the
            base alone.
        parts: Which of the cell's adapters it uses, by position.
    """

    name: str
    method: str = ""
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run consists of.

    Attributes:
        cells: What to draw.
        methods: Composition methods, in the order of the tables.
        steps: Numbers of denoising steps; each is a protocol of its own.
        seeds: Pictures per cell and row; their seeds are 0, 1, ….
        weight: Strength of every adapter.
    """

    cells: Sequence[Cell]
    methods: Sequence[str]
    steps: Sequence[int] = (25,)
    seeds: int = 2
    weight: float = 1.0

    def units(self) -> Iterator[tuple[Cell, int, Row]]:
        """Every unit of work, cell by cell, so that an early stop still compares all rows."""
        for steps in self.steps:
            for cell in self.cells:
                for row in rows(cell, self.methods):
                    yield cell, steps, row


class Painter(Protocol):
    """Draws pictures with seeds 0 to ``count`` - 1, and says what it took."""

    def __call__(
        self, text: str, adapters: Sequence[Adapter], method: str, weight: float, steps: int, count: int
    ) -> tuple[list[Image], Cost]: ...


def rows(cell: Cell, methods: Iterable[str]) -> list[Row]:
    """The rows of a cell, in the order of the tables."""
    alone = []
    for index, (kind, _) in enumerate(cell.parts):
        name = "second subject" if kind == "subject" and index == 1 else kind
        name = "style" if kind == "filter" and not cell.style else name
        alone.append(Row(f"{name} alone", "merge", (index,)))
    everyone = tuple(range(len(cell.parts)))
    return [Row(ARTIST), Row(NO_LORA), *alone, *(Row(name, name, everyone) for name in methods)]


def run(
    plan: Plan,
    roster: Roster,
    artwork: Artwork,
    judge: Judge,
    paint: Painter,
    ledger: Ledger,
    on_unit: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Does whatever of the plan is not in the ledger yet.

    Args:
        plan: What to draw.
        roster: The adapters.
        artwork: The artists' pictures.
        judge: Who scores.
        paint: Who draws.
        ledger: What is done; every finished unit is added at once.
        on_unit: Called with (units done, units in all).
    """
    units = list(plan.units())
    for done, (cell, steps, row) in enumerate(units):
        on_unit(done, len(units))
        if (cell.id, steps, row.name) in ledger:
            continue
        pictures, cost = _draw(plan, cell, steps, row, roster, artwork, paint)
        found = score(judge, artwork, cell, as_tensor(pictures))
        seconds, peak = (cost.seconds, cost.peak) if cost else (None, None)
        ledger.add(Record(cell.id, steps, row.name, cell.cluster, found, seconds, peak), pictures)
    on_unit(len(units), len(units))


def _draw(
    plan: Plan, cell: Cell, steps: int, row: Row, roster: Roster, artwork: Artwork, paint: Painter
) -> tuple[list[Image], Cost | None]:
    if row.name == ARTIST:
        return as_images(artwork.truth(cell)[None]), None
    chosen = [roster.adapter(cell.parts[index]) for index in row.parts]
    text = prompt(cell, roster.say(cell.parts))
    return paint(text, chosen, row.method or "merge", plan.weight, steps, plan.seeds)


def painter(
    pipe: Any,
    device: str,
    *,
    side: int,
    guidance: float,
    guidance_rescale: float = 0.0,
    accelerator: Adapter | None = None,
) -> Painter:
    """A painter on a pipeline.

    Args:
        pipe: The base.
        device: Where it runs, for the measurements.
        side: Side of the pictures in pixels.
        guidance: Classifier-free guidance scale.
        guidance_rescale: See :class:`loracomp.recipe.Recipe`.
        accelerator: On in every picture at full strength, the base's own included.
    """
    fast = [accelerator] if accelerator else []
    settings: dict[str, Any] = {"width": side, "height": side, "guidance_scale": guidance}
    if guidance_rescale:
        settings["guidance_rescale"] = guidance_rescale

    def paint(
        text: str, adapters: Sequence[Adapter], method: str, weight: float, steps: int, count: int
    ) -> tuple[list[Image], Cost]:
        chosen = way(method)
        used, weights = chosen.prepare(adapters, [weight] * len(adapters))
        everyone, weights = [*used, *fast], [*weights, *[1.0] * len(fast)]
        with measured(device) as cost:
            images = compose(
                pipe, text, everyone, chosen.program, weights, batch=count, num_inference_steps=steps,
                **settings,
            )  # fmt: skip
        return images, cost

    return paint
