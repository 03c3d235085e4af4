"""Which rows of a batch a program computes, and how their predictions become one per image.

A row is one prediction: of an image, in one half of guidance, in one branch of its program. Rows of one
branch stand together, in the order of the pipeline's own batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loracomp.fusion.program import GateTable

UNBATCHED = {"img_ids", "txt_ids", "image_rotary_emb"}
CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"


@dataclass(frozen=True)
class Row:
    """One prediction: the pipeline's row that it serves, its program, half and branch."""

    source: int
    program: int
    half: str
    branch: int


@dataclass(frozen=True)
class Rows:
    """A run's gates by row.

    Attributes:
        rows: The rows, in the order of the batch.
        batch: Rows that the pipeline itself sends.
        images: Images among them, each once per half.
        shared: Whether one row of gates serves the whole batch as it is.
        gates: Strengths, shape (steps, rows or 1, adapters).
        mix: Share of each row in the pipeline's row that it serves, shape (steps, rows).
        refresh: Rows that renew cached features, shape (steps, rows), or None for no opinion.
    """

    rows: tuple[Row, ...]
    batch: int
    images: int
    shared: bool
    gates: Tensor
    mix: Tensor
    refresh: Tensor | None

    @property
    def sources(self) -> Tensor:
        """The pipeline's row behind each row, shape (rows,)."""
        return torch.tensor([row.source for row in self.rows])

    @property
    def pictures(self) -> Tensor:
        """The image of each row, shape (rows,)."""
        return self.sources % self.images

    @property
    def programs(self) -> Tensor:
        """The program of each row of gates, shape (rows or 1,)."""
        return torch.tensor([row.program for row in (self.rows[:1] if self.shared else self.rows)])

    @property
    def single(self) -> bool:
        """Whether every row of the pipeline is computed once, so that there is nothing to mix."""
        return [row.source for row in self.rows] == list(range(self.batch))

    def mixing(self) -> Tensor:
        """Matrices from rows to the pipeline's rows, shape (steps, batch, rows)."""
        chosen = torch.nn.functional.one_hot(self.sources, self.batch).T
        return chosen * self.mix[:, None]


def arrange(tables: Sequence[GateTable], batch: int, halves: Sequence[str]) -> Rows:
    """The rows of a denoiser call.

    Args:
        tables: One table, or one per image.
        batch: Rows that the pipeline sends: the images of each half, half after half.
        halves: Which halves of guidance they are, in order.
    """
    images = batch // len(halves)
    places = [(s, s % images if len(tables) > 1 else 0, halves[s // images]) for s in range(batch)]

    def table(program: int, half: str) -> GateTable:
        whole = tables[program]
        return whole.unconditional or whole if half == UNCONDITIONAL else whole

    most = max(table(program, half).branches for _, program, half in places)
    rows = tuple(
        Row(source, program, half, branch)
        for branch in range(most)
        for source, program, half in places
        if branch < table(program, half).branches
    )
    views = [table(row.program, row.half) for row in rows]
    used = {(row.program, id(view), row.branch) for row, view in zip(rows, views, strict=True)}
    shared = len(used) == 1
    gates = [view.gates[:, row.branch] for row, view in zip(rows, views, strict=True)]
    mix = torch.stack([view.mix[:, row.branch] for row, view in zip(rows, views, strict=True)], dim=1)
    kept = torch.stack(gates[:1] if shared else gates, dim=1)
    return Rows(rows, batch, images, shared, kept, mix, _refresh(rows, views))


def silenced(rows: Rows, presence: Tensor) -> Rows:
    """The rows with the gates of adapters at 0 that have no place, by (images or 1, adapters)."""
    if len(presence) == 1:
        return replace(rows, gates=rows.gates * presence)
    gates = rows.gates.expand(-1, len(rows.rows), -1) * presence[rows.pictures]
    return replace(rows, gates=gates, shared=False)


def _refresh(rows: Sequence[Row], views: Sequence[GateTable]) -> Tensor | None:
    if all(view.refresh is None for view in views):
        return None
    marks = []
    for row, view in zip(rows, views, strict=True):
        every = torch.ones(len(view.gates), dtype=torch.bool)
        marks.append(every if view.refresh is None else view.refresh[:, row.branch])
    return torch.stack(marks, dim=1)


def take(value: Any, batch: int, index: Tensor, name: str = "") -> Any:
    """The value with the rows at ``index`` of every tensor that has a row per sample."""
    if name in UNBATCHED:
        return value
    if isinstance(value, Tensor):
        return value.index_select(0, index) if value.ndim > 0 and len(value) == batch else value
    if isinstance(value, dict):
        return {key: take(item, batch, index, str(key)) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(take(item, batch, index) for item in value)
    return value


TEXTS = {"encoder_hidden_states": "states", "pooled_projections": "pooled", "text_embeds": "pooled"}


def replace_texts(kwargs: dict[str, Any], texts: dict[str, Tensor]) -> dict[str, Any]:
    """A denoiser's arguments with other text states, by the roles of :data:`TEXTS`."""
    changed = dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, dict):
            changed[name] = replace_texts(value, texts)
        elif name in TEXTS and isinstance(value, Tensor):
            text = texts.get(TEXTS[name], value)
            changed[name] = text.to(value) if text.shape == value.shape else value
    return changed


def over(output: Any, change: Any) -> Any:
    """A denoiser's output with ``change`` applied to its prediction."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return type(output)(**{key: change(value) for key, value in output.items()})


def joined(outputs: Sequence[Any]) -> Any:
    """The outputs of consecutive parts of a batch as one."""
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    return type(outputs[0])(**{key: torch.cat([o[key] for o in outputs]) for key in outputs[0]})


def mixed(prediction: Tensor, mixing: Tensor) -> Tensor:
    """Predictions (rows, …) as one per row of the pipeline, by a matrix (batch, rows)."""
    flat = mixing.to(prediction.dtype) @ prediction.flatten(1)
    return flat.unflatten(1, prediction.shape[1:])
