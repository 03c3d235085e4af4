"""Running attacks: every cell on the marked LoRA and on its unmarked twin, since attacks move the null too.

Drawing, merging and judging are functions of the caller: the suite knows none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.watermark.attacks.images import IMAGE_ATTACKS
from loracomp.watermark.attacks.weights import WEIGHT_ATTACKS
from loracomp.watermark.calibration import Calibration
from loracomp.watermark.codec import Codec
from loracomp.watermark.evidence import Scale, bootstrap, pooled, readers
from loracomp.watermark.keys import Key
from loracomp.watermark.pictures import fitted
from loracomp.watermark.tails import balanced_share, bit_threshold, critical_cosine, share_interval

Draw = Callable[[Adapter], Tensor]
Damage = Callable[[Tensor, Tensor], float]
SETS = 5
STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2)


@dataclass(frozen=True)
class Case:
    """One cell: how an adapter's attacked pictures come about.

    Attributes:
        kind: ``image``, ``weights``, ``merge``, ``live``, …
        attack: Name.
        level: Level, as text.
        pictures: Adapter to pictures (images, 3, H, W) in [0, 1], in the order of the plain ones.
    """

    kind: str
    attack: str
    level: str
    pictures: Draw


@dataclass(frozen=True)
class Row:
    """What an attack leaves of a mark.

    Attributes:
        kind: Kind of attack.
        attack: Name.
        level: Level.
        images: Pictures.
        accuracy: Mean bit accuracy.
        accuracy_low: Lower end of its 95 % interval over pictures.
        accuracy_high: Upper end.
        tpr_1e2: Share of single pictures beyond the 99 % quantile of the attacked twin's.
        tpr_1e3: Share beyond the 99.9 % quantile of calibration's.
        tpr_1e6: Share of single pictures with a random-key p-value of at most 1e-6 (nominal).
        tpr5_1e6: The same for sets of five pictures.
        strength: Mean projection relative to the plain marked pictures.
        twin_accuracy: Bit accuracy on the attacked unmarked twin.
        twin_fpr: Share of the attacked twin's pictures with a p-value of at most 1e-3.
        twin_fpr_high: Upper end of its exact 95 % interval.
        psnr: dB between attacked and plain marked pictures, where sizes agree; NaN else.
        damage: What the caller's judge says the attack itself spoils, on the twin; NaN without one.
    """

    kind: str
    attack: str
    level: str
    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    tpr_1e2: float
    tpr_1e3: float
    tpr_1e6: float
    tpr5_1e6: float
    strength: float
    twin_accuracy: float
    twin_fpr: float
    twin_fpr_high: float
    psnr: float
    damage: float

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object; null for what is not known."""
        known = asdict(self)
        return {name: None if value != value else value for name, value in known.items()}


@dataclass(eq=False)
class Suite:
    """A marked adapter under attack.

    Attributes:
        marked: The adapter.
        twin: The same without the mark.
        key: Its key.
        codec: Reads marks.
        draw: Draws an adapter's pictures, always the same prompts and seeds.
        calibration: Of the codec; coordinates are taken as they are where None.
        damage: Says how far pictures are from others, where somebody can.
    """

    marked: Adapter
    twin: Adapter
    key: Key
    codec: Codec
    draw: Draw
    calibration: Calibration | None = None
    damage: Damage | None = None

    def __post_init__(self) -> None:
        dimensions = self.codec.shape.dimensions
        self.scale = self.calibration.scale if self.calibration else Scale.none(dimensions)
        self.carriers, self.direction = readers(self.key, dimensions, self.codec.keyed)
        self.plain, self.plain_twin = self.draw(self.marked), self.draw(self.twin)
        self.gain = float(self._projection(self._read(self.plain)).mean())

    def run(self, cases: Iterable[Case], told: Callable[[Row], None] = lambda row: None) -> list[Row]:
        """All cells; ``told`` hears of each."""
        rows = []
        for case in cases:
            rows.append(self.row(case))
            told(rows[-1])
        return rows

    def row(self, case: Case) -> Row:
        """One cell."""
        attacked, other = case.pictures(self.marked), case.pictures(self.twin)
        read, null = self._read(attacked), self._read(other)
        scores, twins = self._cosines(read), self._cosines(null)
        right = self._right(read)
        low, high = bootstrap(right)
        false = self._significant(self.scale.standard(null), 1e-3)
        calibrated = math.inf
        if self.calibration is not None:
            calibrated = float((self.calibration.standard @ self.direction).quantile(0.999))
        return Row(
            case.kind, case.attack, case.level, len(attacked), float(right.mean()), low, high,
            _share(scores > twins.quantile(0.99)),
            _share(scores > calibrated) if math.isfinite(calibrated) else math.nan,
            _share(self._significant(self.scale.standard(read), 1e-6)),
            self._sets(read), float(self._projection(read).mean()) / (self.gain or 1.0),
            float(self._right(null).mean()), _share(false), share_interval(int(false.sum()), len(false))[1],
            self._psnr(attacked), self.damage(other, self.plain_twin) if self.damage else math.nan,
        )  # fmt: skip

    def power(self, strengths: Sequence[float] = STRENGTHS) -> list[dict[str, float]]:
        """Power at α = 1e-3 and 1e-6 against strength, for 1, 3 and 5 pictures where as many are drawn."""
        out = []
        for value in strengths:
            read = self._read(self.draw(self.marked.scaled(value)))
            row = {"strength": value, "accuracy": float(self._right(read).mean())}
            for images in [count for count in (1, 3, SETS) if count <= len(read)]:
                for alpha in (1e-3, 1e-6):
                    row[f"tpr{images}_{alpha:g}"] = self._sets(read, images, alpha)
            out.append(row)
        return out

    def _read(self, pictures: Tensor) -> Tensor:
        side = self.codec.shape.pixels
        return self.codec.read(torch.stack([fitted(picture, side) for picture in pictures]))

    def _cosines(self, read: Tensor) -> Tensor:
        return self.scale.standard(read) @ self.direction

    def _projection(self, read: Tensor) -> Tensor:
        return (read.double() - self.scale.mean) @ self.direction

    def _right(self, read: Tensor) -> Tensor:
        logits = self.scale.standard(read) @ self.carriers.T
        return ((logits * (2 * self.key.message - 1)) > 0).double().mean(1)

    def _sets(self, read: Tensor, images: int = SETS, alpha: float = 1e-6) -> float:
        count = len(read) // images
        if not count:
            return math.nan
        whole = pooled(self.scale.standard(read[: count * images]).reshape(count, images, -1))
        return _share(self._significant(whole, alpha))

    def _significant(self, vectors: Tensor, alpha: float) -> Tensor:
        """(n,) bool: whether a random key would score as high with at most this probability.

        By the cosine for keyed codecs; by matching bits for fixed carriers, whose key is the message alone.
        """
        if self.codec.keyed:
            return vectors @ self.direction >= critical_cosine(alpha, len(self.direction))
        threshold = bit_threshold(self.key.bits, alpha * balanced_share(self.key.bits))
        right = ((vectors @ self.carriers.T * (2 * self.key.message - 1)) > 0).sum(1)
        return right >= (self.key.bits + 1 if threshold is None else threshold)

    def _psnr(self, attacked: Tensor) -> float:
        if attacked.shape != self.plain.shape:
            return math.nan
        error = (attacked - self.plain).square().mean().clamp_min(1e-10)
        return float(-10 * torch.log10(error))


def image_cases(draw: Draw, names: Iterable[str] = ()) -> list[Case]:
    """The registered attacks on pictures, and none first."""
    kept: dict[str, Tensor] = {}

    def pictures(adapter: Adapter) -> Tensor:
        if adapter.digest not in kept:
            kept[adapter.digest] = draw(adapter)
        return kept[adapter.digest]

    cases = [Case("none", "none", "", pictures)]
    for name in names or IMAGE_ATTACKS:
        attack = IMAGE_ATTACKS[name]
        for level in attack.levels:
            cases.append(Case("image", name, f"{level:g}", _image_case(pictures, name, level)))
    return cases


def _image_case(pictures: Draw, name: str, level: float) -> Draw:
    return lambda adapter: IMAGE_ATTACKS[name](pictures(adapter), level)


def weight_cases(draw: Draw, names: Iterable[str] = ()) -> list[Case]:
    """The registered attacks on files."""
    cases = []
    for name in names or WEIGHT_ATTACKS:
        attack = WEIGHT_ATTACKS[name]
        for level in attack.levels:
            cases.append(Case("weights", name, f"{level:g}", _weight_case(draw, name, level)))
    return cases


def _weight_case(draw: Draw, name: str, level: float) -> Draw:
    return lambda adapter: draw(WEIGHT_ATTACKS[name](adapter, level))


def function_cases(kind: str, functions: Mapping[str, Draw]) -> list[Case]:
    """Attacks that only the caller can run: merging, composing, fine-tuning, re-encoding, regenerating."""
    return [Case(kind, name, "", function) for name, function in functions.items()]


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
