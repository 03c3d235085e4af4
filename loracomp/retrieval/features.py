"""The training-free features of an adapter: what its weights do, whatever file they came in.

All numbers are functions of ΔW alone: gauge, alpha folding, rank padding, dialect, tensor order and, up
to rounding, dtype make no difference. Absent layers and layers of zero updates are masked alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from zlib import crc32

import torch
from torch import Tensor

from loracomp.lowrank import LowRank
from loracomp.retrieval.bank import ProbeBank
from loracomp.retrieval.reduction import PROBES, Reduced, merged, reduce_layers
from loracomp.retrieval.sites import SiteTable, site_table
from loracomp.retrieval.spectra import NUMBERS, spectrum_features, squared_singular_values
from loracomp.retrieval.textprobes import TextBlock, text_block

VERSION = 1
SKETCH = PROBES * PROBES
HALF = PROBES * (PROBES + 1) // 2
_POOL = 1 << 15


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one adapter; ``sites`` layers in the order of the base's site table.

    Attributes:
        present: Which layers it changes, shape (sites,), bool.
        spectra: See :mod:`loracomp.retrieval.spectra`, shape (sites, 13), float32; 0 where absent.
        sketch: P ΔW Qᵀ / ‖ΔW‖ of each layer, shape (sites, 256), float16.
        out: Upper half of P ΔW ΔWᵀ Pᵀ / ‖ΔW‖², shape (sites, 136), float16.
        into: Upper half of Q ΔWᵀ ΔW Qᵀ / ‖ΔW‖², shape (sites, 136), float16.
        whole: Signed sum of all layers' P ΔW Qᵀ, shape (256,), float32; linear in ΔW, and its inner
            products estimate those of whole adapters.
        text: Answers to the text probes; None without a bank or without layers that read the text.
        drawn: What it draws (:mod:`loracomp.retrieval.drawn`), shape (8, 3, 64, 64), uint8; None where the
            adapter was not drawn with.
    """

    present: Tensor
    spectra: Tensor
    sketch: Tensor
    out: Tensor
    into: Tensor
    whole: Tensor
    text: TextBlock | None = None
    drawn: Tensor | None = None

    @property
    def log_norm(self) -> float:
        """Natural logarithm of ‖ΔW‖ over all layers; -inf for an adapter that changes nothing."""
        logs = self.spectra[self.present, 0].double()
        return float((2 * logs).logsumexp(0) / 2) if len(logs) else float("-inf")


def features(layers: Mapping[int, LowRank], table: SiteTable, bank: ProbeBank | None = None) -> Features:
    """The features of an adapter from its layers by position in the site table.

    Args:
        layers: Updates, finite.
        table: The base's sites.
        bank: The base's text probes, for the text block and relative norms.

    Raises:
        FloatingPointError: Values that are not finite, or so large that their products are not.
    """
    columns = Columns(table, bank)
    for reduced in merged(reduce_layers(layers.items())):
        columns.add(reduced)
    return columns.features([text_block(layers, bank) if bank else None])[0]


def _rounded(text: TextBlock | None) -> TextBlock | None:
    """A text block in half precision's numbers, so that stored features equal fresh ones."""
    if text is None:
        return None
    parts = [part.half() for part in (text.energy, text.listen, text.pull, text.echo)]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise FloatingPointError("answers to text probes that half precision cannot hold")
    return TextBlock(*(part.float() for part in parts))


class Columns:
    """Features of ``count`` adapters that fill up batch by batch.

    Args:
        table: The base's sites.
        bank: The base's text probes, for relative norms.
        count: Adapters; layer ``place`` of adapter ``i`` has the number ``i · len(table) + place``.
    """

    def __init__(self, table: SiteTable, bank: ProbeBank | None, count: int = 1) -> None:
        self._table, self._count = table, count
        self._norms = bank.norms if bank else torch.full((len(table),), float("nan"))
        sites = count * len(table)
        self._present = torch.zeros(sites, dtype=torch.bool)
        self._spectra = torch.zeros(sites, NUMBERS)
        self._sketch = torch.zeros(sites, SKETCH)
        self._out, self._into = torch.zeros(sites, HALF), torch.zeros(sites, HALF)
        self._whole = torch.zeros(count, SKETCH, dtype=torch.float64)

    def add(self, reduced: Reduced) -> None:
        """Takes in a batch of reduced layers; raises FloatingPointError for values that are not finite."""
        if not bool(reduced.up.isfinite().all() and reduced.down.isfinite().all()):
            raise FloatingPointError("values that are not finite, or whose products are not")
        places = torch.tensor(reduced.places)
        owner, sites = places // len(self._table), places % len(self._table)
        squares = squared_singular_values(reduced.up, reduced.down, reduced.scale)
        total = squares.sum(1)
        changed = total > 0
        numbers = spectrum_features(squares, self._norms[sites])
        sketch, out, into = sketches(reduced)
        self._whole.index_add_(0, owner, sketch.flatten(1) * _site_signs(self._table.base)[sites])
        size = total.clamp_min(1e-30)[:, None]
        self._present[places] = changed
        self._spectra[places] = numbers.nan_to_num(0.0) * changed[:, None]
        self._sketch[places] = (sketch.flatten(1) / size.sqrt()).float()
        self._out[places] = (_upper(out) / size).float()
        self._into[places] = (_upper(into) / size).float()

    def features(self, texts: Sequence[TextBlock | None]) -> list[Features]:
        """What was gathered, one each, with answers to text probes beside it.

        Raises:
            FloatingPointError: Answers that half precision cannot hold.
        """
        columns = (self._present, self._spectra, self._sketch, self._out, self._into)
        present, spectra, *halves = (column.unflatten(0, (self._count, -1)) for column in columns)
        sketch, out, into = (column.half() for column in halves)
        whole = self._whole.float()
        return [
            Features(present[i], spectra[i], sketch[i], out[i], into[i], whole[i], _rounded(text))
            for i, text in enumerate(texts)
        ]


def sketches(reduced: Reduced) -> tuple[Tensor, Tensor, Tensor]:
    """P ΔW Qᵀ, P ΔW ΔWᵀ Pᵀ and Q ΔWᵀ ΔW Qᵀ of reduced layers, each (n, 16, 16), float64."""
    left, right = reduced.left.double(), reduced.right.double()
    scale = reduced.scale[:, None, None]
    out = left @ reduced.down @ left.mT
    into = right.mT @ reduced.up @ right
    return left @ right * scale, out * scale.square(), into * scale.square()


def _upper(symmetric: Tensor) -> Tensor:
    return symmetric.flatten(1)[:, _upper_places()]


@cache
def _upper_places() -> Tensor:
    rows, columns = torch.triu_indices(PROBES, PROBES)
    return rows * PROBES + columns


@cache
def _site_signs(base: str) -> Tensor:
    """±1 of each number of each layer, so that layers add up without getting into each other's way."""
    starts = [crc32(site.path.encode()) % (_POOL - SKETCH) for site in site_table(base).sites]
    return _pool()[torch.tensor(starts)[:, None] + torch.arange(SKETCH)]


@cache
def _pool() -> Tensor:
    source = torch.Generator().manual_seed(20250827)
    return torch.randint(0, 2, (_POOL,), generator=source).double() * 2 - 1
