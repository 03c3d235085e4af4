"""Rows of the index from facts, features, text probes and, where there is one, a learned encoder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from loracomp.retrieval import hearing
from loracomp.retrieval.bank import ProbeBank
from loracomp.retrieval.encoding import Encoded
from loracomp.retrieval.features import VERSION, Features
from loracomp.retrieval.index import Row

FREE = f"free-{VERSION}"
_DRAWN = "drawn"


class Encoder(Protocol):
    """A learned encoder as the index uses it."""

    @property
    def name(self) -> str:
        """Identity of its weights: vectors of two encoders never meet."""

    @property
    def base(self) -> str:
        """Base whose adapters it reads."""

    def adapters(self, features: Sequence[Features]) -> Tensor:
        """Unit vectors (adapters, 512); NaN for an adapter of which it can read nothing."""


def encoder_name(
    base: str, banks: Mapping[str, ProbeBank], encoders: Mapping[str, Encoder], drawn: bool = False
) -> str:
    """What rows of a base are made with, with pictures or without; a row with another name is out of date."""
    parts = [FREE]
    if base in banks:
        parts.append(banks[base].digest)
    if base in encoders:
        parts.append(encoders[base].name)
    if drawn:
        parts.append(_DRAWN)
    return "+".join(parts)


def was_drawn(row: Row) -> bool:
    """Whether a row was made with pictures of what its adapter draws."""
    return str(row["encoder"]).split("+")[-1] == _DRAWN


def rows(
    found: Sequence[Encoded],
    base: str,
    banks: Mapping[str, ProbeBank],
    encoders: Mapping[str, Encoder],
    kept: Mapping[str, Row] | None = None,
) -> list[Row]:
    """Rows of adapters of one base.

    Args:
        found: The adapters.
        base: Their base.
        banks: Text probes by base.
        encoders: Learned encoders by base.
        kept: Rows that are there already, whose quarantine and time stay as they are.
    """
    encoder = encoders.get(base)
    learned = encoder.adapters([item.features for item in found]) if encoder else None
    names = [encoder_name(base, banks, encoders, drawn) for drawn in (False, True)]
    out: list[Row] = []
    for place, item in enumerate(found):
        old = (kept or {}).get(item.facts.id, {})
        row: dict[str, Any] = asdict(item.facts)
        name = names[item.features.drawn is not None]
        row |= {"encoder": name, "quarantine": old.get("quarantine", 0)}
        row |= {"added": old.get("added", int(time.time()))}
        row["v_update"] = _unit(item.features.whole).numpy()
        row |= _spoken(item.features, banks.get(base))
        known = learned is not None and bool(learned[place].isfinite().all())
        row["learned"] = known
        row["v_learned"] = learned[place].numpy() if learned is not None and known else None
        out.append(row)
    return out


def _spoken(features: Features, bank: ProbeBank | None) -> dict[str, Any]:
    block = features.text
    if bank is None or block is None or not bool(block.listen.any()):
        return {
            "heard": False,
            "heard_mean": 0.0,
            "heard_spread": 1.0,
            "probes": b"",
            "v_hears": None,
            "v_says": None,
        }
    mean, spread = hearing.bank_responses(block, bank)
    return {
        "heard": True,
        "heard_mean": mean,
        "heard_spread": spread,
        "probes": hearing.directions(block).half().contiguous().numpy().tobytes(),
        "v_hears": hearing.adapter_vector(block).numpy(),
        "v_says": hearing.said_vector(block).numpy(),
    }


def probes(row: Row, width: int) -> Tensor:
    """The directions of a row, (16, width), float32."""
    return torch.frombuffer(bytearray(row["probes"]), dtype=torch.float16).float().view(-1, width)


def _unit(vector: Tensor) -> Tensor:
    wide = vector.double()
    return (wide / wide.norm().clamp_min(1e-30)).float()
