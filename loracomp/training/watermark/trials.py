"""Calibrating a codec and attacking a mark on an open base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.pipeline import layers_of
from loracomp.training.watermark.adversary import (
    editing_cases,
    foreign_cases,
    gradient_cases,
    overwriting_cases,
)
from loracomp.training.watermark.prompts import base_prompts, prompts_for
from loracomp.training.watermark.studio import Studio
from loracomp.watermark import nullworld, screening
from loracomp.watermark.attacks import (
    IMAGE_ATTACKS,
    Case,
    Row,
    Suite,
    function_cases,
    image_cases,
    weight_cases,
)
from loracomp.watermark.attacks.weights import average, refused
from loracomp.watermark.calibration import Calibration, joined
from loracomp.watermark.codec import Codec
from loracomp.watermark.keys import Key
from loracomp.watermark.pictures import fitted, read_pictures

MILD: tuple[tuple[str, float], ...] = (
    ("jpeg", 50), ("blur", 1), ("noise", 0.05), ("crop-resize", 0.7), ("resize", 0.5), ("brightness", 1.5),
)  # fmt: skip
FEWEST = 100
Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Negatives:
    """Unmarked pictures by population, read as they come.

    Attributes:
        codec: Reads them.
        parts: (population, coordinates, clusters).
    """

    codec: Codec
    parts: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def add(self, name: str, pictures: Tensor, clusters: Tensor) -> None:
        """Reads pictures (n, 3, H, W) of sources (n,)."""
        side = self.codec.shape.pixels
        read = self.codec.read(torch.stack([fitted(picture, side) for picture in pictures]))
        self.parts.append((name, read, clusters))

    def attacked(self, pictures: Tensor, clusters: Tensor) -> None:
        """The same pictures through mild attacks, each in its turn; a population of their own."""
        parts, index = [], torch.arange(len(pictures))
        for number, (name, level) in enumerate(MILD):
            chosen = pictures[index % len(MILD) == number]
            if len(chosen):
                parts.append(IMAGE_ATTACKS[name](chosen, level))
        order = torch.cat([index[index % len(MILD) == number] for number in range(len(MILD))])
        self.add("attacked", torch.cat(parts), clusters[order])

    def calibration(self, base: str) -> Calibration:
        """All populations, parts of one name together.

        Raises:
            UsageError: Too few pictures.
        """
        names = list(dict.fromkeys(name for name, _, _ in self.parts))
        whole = []
        for name in names:
            mine = [(rows, cluster) for other, rows, cluster in self.parts if other == name]
            whole.append((name, torch.cat([r for r, _ in mine]), torch.cat([c for _, c in mine])))
        if (total := sum(len(rows) for _, rows, _ in whole)) < FEWEST:
            raise UsageError(f"{total} unmarked pictures are too few to calibrate with; {FEWEST} at least")
        return screening.with_acceptance(joined(whole, base, self.codec.digest))


def calibrate(
    codec: Codec,
    pipe: Any,
    *,
    real: Sequence[Path] = (),
    adapters: Sequence[Adapter] = (),
    twins: Sequence[Adapter] = (),
    count: int = 500,
    seed: int = 5000,
    steps: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Calibration:
    """Reads unmarked pictures: real ones, the base's, other adapters', and all of these attacked.

    Args:
        codec: What is calibrated.
        pipe: Its base.
        real: Files of real pictures.
        adapters: Other adapters, unmarked.
        twins: Unmarked twins of marked adapters.
        count: Pictures of the base; as many of all adapters together.
        seed: Of the drawing.
        steps: Denoising steps; the base's own where None.
        progress: Told (populations done, of).
    """
    found = Negatives(codec)
    drawing = [*(("other LoRAs", a) for a in adapters), *(("unmarked twins", a) for a in twins)]
    total = 1 + len(drawing) + bool(real)
    if real:
        pictures = read_pictures(real, codec.shape.pixels).pixels
        clusters = torch.arange(len(pictures))
        found.add("real", pictures, clusters)
        found.attacked(pictures, clusters)
        progress(1, total)
    prompts = base_prompts(codec.base, count, seed)
    batch = 64 if pipe.device.type == "cuda" else 16
    pictures = Studio(pipe, prompts, seed, steps, batch=batch).draw()
    subjects = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
    clusters = torch.tensor([subjects[text] for text in prompts])
    found.add("base", pictures, clusters)
    found.attacked(pictures, 100_000 + clusters)
    for number, (population, adapter) in enumerate(drawing):
        texts = prompts_for(adapter, max(1, count // len(drawing)), seed + number)
        pictures = Studio(pipe, texts, seed + 10_000 * (1 + number), steps, batch=batch).draw([adapter])
        clusters = torch.full((len(pictures),), 200_000 + number)
        found.add(population, pictures, clusters)
        found.attacked(pictures, clusters)
        progress(number + 1 + bool(real), total)
    return found.calibration(codec.base)


def null_report(calibration: Calibration, keys: int = 200, bits: int = 32) -> list[nullworld.Rate]:
    """False positives of every population for one and five images, over screened decoy keys."""
    decoys = [key for key in screening.decoy_keys(2 * keys, bits) if screening.screen(calibration, key)][
        :keys
    ]
    rows = []
    for number, name in enumerate(calibration.names):
        mine = calibration.population == number
        for images in (1, 5):
            if int(mine.sum()) >= 20 * images:
                rows.append(
                    nullworld.measure(
                        calibration.coordinates[mine], calibration.cluster[mine], decoys,
                        scale=calibration.scale, images=images, population=name,
                    )
                )  # fmt: skip
    return rows


def merge_cases(studio: Studio, others: Sequence[Adapter]) -> list[Case]:
    """Merging with other adapters by every offline method, and composing by every live one."""
    from loracomp.fusion.gated import usable
    from loracomp.fusion.offline import MERGES, merge
    from loracomp.pipeline import base_of

    if not others:
        return []

    def offline(method: str) -> Callable[[Adapter], Tensor]:
        return lambda adapter: studio.draw([merge([adapter, *others], None, method)])

    def live(method: str) -> Callable[[Adapter], Tensor]:
        return lambda adapter: studio.draw([adapter, *others], method)

    merged = function_cases("merge", {name: offline(name) for name in MERGES})
    return merged + function_cases("live", {name: live(name) for name in usable(base_of(studio.pipe))})


def crowd_cases(studio: Studio, others: Sequence[Adapter]) -> list[Case]:
    """One, two, three and five other adapters beside it, at full and at half weight."""

    def beside(count: int, weight: float) -> Callable[[Adapter], Tensor]:
        chosen = others[:count]
        return lambda adapter: studio.draw([adapter, *chosen], "merge", [1.0, *[weight] * len(chosen)])

    return [
        Case("crowd", f"{count} other", f"{weight:g}", beside(count, weight))
        for count in (1, 2, 3, 5)
        if count <= len(others)
        for weight in (0.5, 1.0)
    ]


def picture_cases(studio: Studio) -> list[Case]:
    """Attacks that need the base: its own autoencoder, and regeneration by diffusion."""

    def encoded(times: int) -> Callable[[Adapter], Tensor]:
        return lambda adapter: studio.reencoded(studio.alone(adapter), times)

    def drawn(share: float, times: int) -> Callable[[Adapter], Tensor]:
        return lambda adapter: studio.regenerated(studio.alone(adapter), share, times)

    grid = ((0.03, 1), (0.06, 1), (0.1, 1), (0.2, 1), (0.06, 2), (0.03, 4))
    return [
        *(Case("base", "re-encode", f"x{times}", encoded(times)) for times in (1, 4)),
        *(Case("base", "regenerate", f"{times}x {share:g}", drawn(share, times)) for share, times in grid),
    ]


def folding_cases(studio: Studio) -> list[Case]:
    """Folded into the base's weights and taken out again by subtraction."""
    places = layers_of(studio.pipe)

    def weight(path: str) -> Tensor:
        return cast(Tensor, places[path].weight).detach().cpu()

    def taken(dtype: torch.dtype) -> Callable[[Adapter], Tensor]:
        return lambda adapter: studio.alone(refused(adapter, weight, dtype))

    kinds = {"float32": torch.float32, "float16": torch.float16}
    return [Case("weights", "fold", name, taken(dtype)) for name, dtype in kinds.items()]


def collusion_cases(studio: Studio, copies: Sequence[Adapter]) -> list[Case]:
    """The mean of this copy and those of other users."""

    def together(count: int) -> Callable[[Adapter], Tensor]:
        return lambda adapter: studio.draw([average([adapter, *copies[: count - 1]])])

    return [
        Case("collusion", "average", str(count), together(count))
        for count in (2, 3, 5)
        if count <= len(copies) + 1
    ]


def attack(
    marked: Adapter,
    twin: Adapter,
    key: Key,
    codec: Codec,
    studio: Studio,
    *,
    calibration: Calibration | None = None,
    others: Sequence[Adapter] = (),
    copies: Sequence[Adapter] = (),
    finetuned: Callable[[Adapter, int], Adapter] | None = None,
    surrogate: Codec | None = None,
    foreign: Any = None,
    names: Iterable[str] = (),
    told: Callable[[Row], None] = lambda row: None,
) -> tuple[list[Row], list[dict[str, float]], float]:
    """All attacks, or those named; the power curve against strength; the projection at strength 1.

    Args:
        marked: The marked adapter.
        twin: The same without the mark.
        key: Its key.
        codec: Reads it.
        studio: Draws.
        calibration: Of the codec.
        others: Other adapters to merge with.
        copies: Other users' copies, for collusion.
        finetuned: Trains an adapter on without the mark, for so many steps.
        surrogate: A codec that the attacker of the gradients has; the leaked one at the worst.
        foreign: An autoencoder that is not the base's.
        names: Names of attacks; all where there are none.
        told: Hears of each row.

    Raises:
        UsageError: A name that is no attack.
    """
    suite = Suite(marked, twin, key, codec, studio.alone, calibration)
    cases = [
        *image_cases(studio.alone), *weight_cases(studio.alone), *folding_cases(studio),
        *picture_cases(studio), *editing_cases(studio), *gradient_cases(studio, surrogate),
        *([] if codec.pooled else overwriting_cases(studio, codec)),
        *([] if foreign is None else foreign_cases(studio, foreign)),
        *crowd_cases(studio, others), *merge_cases(studio, others), *collusion_cases(studio, copies),
    ]  # fmt: skip
    if finetuned is not None:
        tune = finetuned
        cases += [
            Case("training", "fine-tune", str(steps), lambda a, n=steps: studio.alone(tune(a, n)))  # type: ignore[misc]
            for steps in (100, 500, 2000)
        ]
    wanted = set(names)
    if unknown := sorted(wanted - {case.attack for case in cases} - {case.kind for case in cases}):
        known = ", ".join(sorted({case.attack for case in cases} | {case.kind for case in cases}))
        raise UsageError(f"unknown attack {unknown[0]!r}; known: {known}")
    if wanted:
        cases = [case for case in cases if {case.attack, case.kind} & wanted]
    rows = suite.run(cases, told)
    return rows, suite.power(), suite.gain
