"""What unmarked images look like to an extractor: the second null, and the file that holds it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from loracomp.errors import FormatError, ResourceError
from loracomp.watermark.evidence import Scale, pooled
from loracomp.watermark.groups import grouped

KIND = "loracomp-watermark-calibration/2"
LEVELS = 127
TAIL = 0.1
FEWEST = 50
RANGE = (0.0005, 0.9995)


@dataclass(frozen=True)
class Empirical:
    """How often unmarked images score as high with the registered key.

    Attributes:
        p: The worst population's p-value.
        population: Its name.
        sets: Sets of images that it is made of.
        modelled: Whether it comes from a fitted tail because no set scored as high.
        by_population: All p-values.
    """

    p: float
    population: str
    sets: int
    modelled: bool
    by_population: dict[str, float]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Coordinates of unmarked images.

    Attributes:
        coordinates: (images, dimensions).
        population: (images,) index into ``names``.
        cluster: (images,) source of each image (subject, LoRA, prompt).
        names: Populations: real pictures, the base, other LoRAs, unmarked twins, attacked ones.
        base: The base model that it is for.
        extractor: Digest of the extractor.
        acceptance: Lower bound on the share of random keys that pass screening; 1 without screening.
    """

    coordinates: Tensor
    population: Tensor
    cluster: Tensor
    names: tuple[str, ...]
    base: str
    extractor: str
    acceptance: float = 1.0

    @cached_property
    def scale(self) -> Scale:
        """Mean and deviation of each coordinate."""
        return Scale.of(self.coordinates)

    @cached_property
    def standard(self) -> Tensor:
        """The coordinates, centered, clipped and of length 1; (images, dimensions) float64."""
        return self.scale.standard(self.coordinates)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything in it."""
        state = hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode())
        for tensor in (self.coordinates.float(), self.population.long(), self.cluster.long()):
            state.update(tensor.contiguous().numpy().tobytes())
        return state.hexdigest()

    @cached_property
    def _sets(self) -> dict[int, dict[str, Tensor]]:
        return {}

    def sets(self, size: int) -> dict[str, Tensor]:
        """By population, pooled unit vectors of disjoint sets of ``size`` images: (sets, dimensions)."""
        if size in self._sets:
            return self._sets[size]
        out = self._sets[size] = {}
        for number, name in enumerate(self.names):
            mine = (self.population == number).nonzero()[:, 0]
            if len(mine) >= size:
                index = mine[grouped(self.cluster[mine], size)]
                out[name] = pooled(self.standard[index])
        return out

    def empirical(self, direction: Tensor, cosine: float, images: int) -> Empirical | None:
        """The registered key's own null; None where no population has enough sets.

        Args:
            direction: The key's unit vector.
            cosine: What the images at hand reach.
            images: How many they are.
        """
        found: dict[str, tuple[float, int, bool]] = {}
        for name, sets in self.sets(images).items():
            if len(sets) >= FEWEST:
                found[name] = _tail(sets @ direction, cosine)
        if not found:
            return None
        worst = max(found, key=lambda name: found[name][0])
        p, count, modelled = found[worst]
        return Empirical(p, worst, count, modelled, {name: row[0] for name, row in found.items()})

    def outside(self, coordinates: Tensor, direction: Tensor) -> Tensor:
        """(images,) bool: unlike anything calibrated, apart from the mark itself."""
        known = self._lengths(self.coordinates, direction)
        ends = known.quantile(torch.tensor(RANGE, dtype=known.dtype))
        wide = 0.25 * (ends[1] - ends[0])
        length = self._lengths(coordinates, direction)
        return (length < ends[0] - wide) | (length > ends[1] + wide) | ~length.isfinite()

    def _lengths(self, coordinates: Tensor, direction: Tensor) -> Tensor:
        values = (coordinates.double() - self.scale.mean) / self.scale.deviation
        return (values - (values @ direction)[:, None] * direction).norm(dim=1)

    def _facts(self) -> dict[str, object]:
        return {
            "format": KIND,
            "names": list(self.names),
            "base": self.base,
            "extractor": self.extractor,
            "acceptance": self.acceptance,
        }

    def thinned(self, images: int) -> Calibration:
        """The same with at most ``images`` of each population, taken at even distances."""
        kept = []
        for number in range(len(self.names)):
            mine = (self.population == number).nonzero()[:, 0]
            count = min(images, len(mine))
            kept.append(mine[torch.arange(count) * len(mine) // max(count, 1)])
        index = torch.cat(kept).sort().values
        picked = {name: getattr(self, name)[index] for name in ("coordinates", "population", "cluster")}
        return replace(self, **picked)

    def save(self, path: Path) -> Path:
        """Writes it, each coordinate in 255 steps, a hundredth of its spread and less; returns the path."""
        from safetensors.torch import save

        from loracomp.formats.writing import write_atomically

        values = self.coordinates.float()
        step = (values.abs().amax(0) / LEVELS).clamp_min(1e-12)
        tensors = {
            "coordinates": (values / step).round().to(torch.int8).contiguous(),
            "step": step,
            "population": self.population.to(torch.int16),
            "cluster": self.cluster.to(torch.int32),
        }
        write_atomically(path, [save(tensors, {KIND: json.dumps(self._facts(), sort_keys=True)})])
        return path


def _tail(null: Tensor, cosine: float) -> tuple[float, int, bool]:
    """Rank p-value of ``cosine`` among ``null`` (n,); where nothing is as high, the fitted tail's."""
    count = len(null)
    above = int((null >= cosine).sum())
    rank = (1 + above) / (1 + count)
    if above:
        return rank, count, False
    return min(rank, _pareto(null, cosine)), count, True


def _pareto(null: Tensor, cosine: float) -> float:
    """Upper tail of a generalized Pareto fit to the highest tenth, by probability-weighted moments.

    Reference: Hosking & Wallis 1987, Technometrics 29(3). A shape below 0 would end the tail at a point
    that few negatives cannot know, so the tail is never lighter than exponential.
    """
    ordered = null.sort().values
    kept = max(10, int(TAIL * len(ordered)))
    level, excess = float(ordered[-kept - 1]), (ordered[-kept:] - ordered[-kept - 1]).double()
    first = float(excess.mean())
    weights = 1 - (torch.arange(1, kept + 1).double() - 0.35) / kept
    second = float((weights * excess).mean())
    if first <= 0:
        return 0.5 / len(null)
    shape = max(0.0, 2 - first / max(first - 2 * second, 1e-12)) if first > 2 * second else 0.0
    size = first * (1 - shape)
    height = (cosine - level) / max(size, 1e-12)
    tail = math.exp(-height) if shape < 1e-6 else (1 + shape * height) ** (-1 / shape)
    return max(1e-300, kept / len(null) * tail)


def load_calibration(path: Path) -> Calibration:
    """Reads a calibration.

    Raises:
        ResourceError: There is no such file.
        FormatError: It is damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ResourceError(
            f"{path}: no calibration, so nothing is verified; make one with `loracomp watermark calibrate`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[KIND])
            tensors = {name: file.get_tensor(name) for name in ("coordinates", "population", "cluster")}
            step = file.get_tensor("step")
        made = Calibration(
            tensors["coordinates"].float() * step,
            tensors["population"].long(),
            tensors["cluster"].long(),
            tuple(map(str, facts["names"])),
            str(facts["base"]),
            str(facts["extractor"]),
            float(facts["acceptance"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: no calibration file ({error}); make it anew") from None
    if (
        made.coordinates.ndim != 2
        or not (0 < made.acceptance <= 1)
        or not bool(made.coordinates.isfinite().all())
    ):
        raise FormatError(f"{path}: damaged calibration; make it anew")
    return made


def joined(parts: Sequence[tuple[str, Tensor, Tensor]], base: str, extractor: str) -> Calibration:
    """A calibration of populations (name, coordinates, cluster)."""
    population = [torch.full((len(rows),), number) for number, (_, rows, _) in enumerate(parts)]
    shift, clusters = 0, []
    for _, _, cluster in parts:
        clusters.append(cluster.long() + shift)
        shift += int(cluster.max()) + 1 if len(cluster) else 0
    return Calibration(
        torch.cat([rows for _, rows, _ in parts]).float(),
        torch.cat(population),
        torch.cat(clusters),
        tuple(name for name, _, _ in parts),
        base,
        extractor,
    )
