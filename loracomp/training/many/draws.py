"""The random part of a batch of many adapters: each one's own draws, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from loracomp.training.many.cohort import Member
from loracomp.training.order import Draw
from loracomp.training.schedule import draw_of

AHEAD = 3
"""Steps that are drawn before they are needed, where another processor does the training."""

Turn = tuple[Member, int] | None
"""A seat's adapter and the number of its step; None for an empty seat."""


class Draws:
    """Draws of the adapters in their seats.

    Args:
        firsts: Number of each adapter's first picture among the pictures of all.
        latent: Shape of one latent (channels, height, width).
        width: Samples of each seat.
        pinned: Whether to draw ahead in threads and to give memory from which a GPU copies by itself.
    """

    def __init__(
        self, firsts: Mapping[Member, int], latent: tuple[int, ...], width: int, pinned: bool
    ) -> None:
        self.firsts, self.latent, self.width, self.pinned = firsts, latent, width, pinned
        self._ahead: dict[tuple[Member, int], Future[list[Draw]]] = {}
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1)) if pinned else None
        none = torch.zeros(width, dtype=torch.bool)
        zeros = torch.zeros(width, *latent)
        self._blank = Draw(none.long(), none, none, torch.full((width,), 0.5), none, zeros)

    def parts(self, turns: Sequence[Turn], accumulation: int) -> list[Draw]:
        """The draws of one step: one of all seats' samples for each forward pass.

        Samples of empty seats, and those that pad small batches, have no noise and show the first picture.
        """
        rows = [self._of(turn) if turn else [self._blank] * accumulation for turn in turns]
        return [self._joined([row[part] for row in rows]) for part in range(accumulation)]

    def close(self) -> None:
        """Ends the threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _of(self, turn: tuple[Member, int]) -> list[Draw]:
        if self._pool is None:
            return self._drawn(*turn)
        member, step = turn
        for number in range(step, min(step + AHEAD + 1, member.config.steps)):
            if (member, number) not in self._ahead:
                self._ahead[member, number] = self._pool.submit(self._drawn, member, number)
        return self._ahead.pop(turn).result()

    def _drawn(self, member: Member, step: int) -> list[Draw]:
        config, count = member.config, len(member.data.pictures)
        parts = range(config.accumulation)
        return [
            self._padded(draw_of(config, step, p, count, self.latent), self.firsts[member]) for p in parts
        ]

    def _padded(self, draw: Draw, first: int) -> Draw:
        blank, missing = self._blank, self.width - len(draw.level)

        def joined(own: Tensor, padding: Tensor) -> Tensor:
            return torch.cat([own, padding[:missing]]) if missing else own

        return Draw(
            pictures=joined(draw.pictures + first, blank.pictures),
            mirrored=joined(draw.mirrored, blank.mirrored),
            uncaptioned=joined(draw.uncaptioned, blank.uncaptioned),
            level=joined(draw.level, blank.level),
            terminal=joined(draw.terminal, blank.terminal),
            noise=joined(draw.noise, blank.noise),
        )

    def _joined(self, draws: Sequence[Draw]) -> Draw:
        joined = Draw(**{key: torch.cat([vars(draw)[key] for draw in draws]) for key in vars(draws[0])})
        if not self.pinned:
            return joined
        return Draw(**{key: value.pin_memory() for key, value in vars(joined).items()})
