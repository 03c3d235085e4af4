"""Steps of many adapters at once: seats are taken, all step together, and finished ones make room."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from loracomp.training.loop import REMEMBERED
from loracomp.training.many.adamw import IDLE, row_of, update
from loracomp.training.many.captured import Captured
from loracomp.training.many.cohort import Cohort, Member
from loracomp.training.many.desk import Desk, Finished
from loracomp.training.many.draws import Draws
from loracomp.training.many.stack import Stack
from loracomp.training.objective import Batch, Objective

CHECK = 20
"""Steps between looks at whether some adapter's loss is still finite: each look waits for the device."""


@dataclass(eq=False)
class Seat:
    """An adapter at work.

    Attributes:
        member: Which one.
        started: Unix time in seconds at which it took the seat.
        step: Its steps done.
        before: Seconds spent in it by processes before this one.
        since: Clock at which this process began.
    """

    member: Member
    started: float
    step: int = 0
    before: float = 0.0
    since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time spent in the seat, in this process and before an interruption."""
        return self.before + time.monotonic() - self.since


class Engine:
    """The members of one cohort in the seats of one stack.

    All shapes stay the same from the first step to the last, whoever sits where, so that compiled code
    and recorded graphs stay valid.

    Args:
        stack: Installed on the base, empty.
        cohort: Who shares the batches.
        objective: The loss, over the pictures of all members.
        firsts: Number of each member's first picture among those of all.
        desk: Takes what is finished.
        graph: Whether to record the work of a step as a CUDA graph.
    """

    def __init__(
        self,
        stack: Stack,
        cohort: Cohort,
        objective: Objective,
        firsts: Mapping[Member, int],
        desk: Desk,
        graph: bool = False,
    ) -> None:
        device = stack.values.device
        self.stack, self.cohort, self.objective, self.desk = stack, cohort, objective, desk
        self.seats: list[Seat | None] = [None] * stack.seats
        self.queue: deque[Member] = deque()
        self.tick = 0
        self.history = torch.zeros(REMEMBERED, stack.seats, device=device)
        self.broken = torch.full((stack.seats,), -1, device=device)
        self.weights = torch.zeros(stack.seats, cohort.width, device=device)
        self.draws = Draws(firsts, objective.latent_shape, cohort.width, device.type == "cuda")
        self._stepped: list[int] = []
        self._starts: dict[Member, Future[Tensor]] = {}
        self._pool = ThreadPoolExecutor(1)
        self._work: Callable[[Sequence[Batch], Tensor, Tensor], tuple[Tensor, Tensor]] = self._step
        if graph:
            self._work = Captured(self._step, self._batches(), self._rows(), self.weights)

    @property
    def active(self) -> list[Seat]:
        """The seats that are taken."""
        return [seat for seat in self.seats if seat]

    @property
    def loss(self) -> float:
        """Mean loss of the adapters that took the latest step; waits for the device."""
        values = self.history[(self.tick - 1) % REMEMBERED].tolist()
        finite = [values[number] for number in self._stepped if values[number] - values[number] == 0]
        return sum(finite) / max(1, len(finite))

    def admit(self) -> None:
        """Fills empty seats from the queue, and makes first values ready for those next in line."""
        for number, seat in enumerate(self.seats):
            if seat is None and self.queue:
                member = self.queue.popleft()
                self.take(number, Seat(member, time.time()))
                self.stack.begin(number, self._start(member).result())
                del self._starts[member]
        for member in islice(self.queue, len(self.seats)):
            self._start(member)

    def close(self) -> None:
        """Ends the threads."""
        self.draws.close()
        self._pool.shutdown(cancel_futures=True)

    def _start(self, member: Member) -> Future[Tensor]:
        """The values that a member begins with."""
        if member not in self._starts:
            self._starts[member] = self._pool.submit(self.stack.fresh, member.config, member.paths)
        return self._starts[member]

    def take(self, number: int, seat: Seat) -> None:
        """Puts an adapter on a seat; its values and moments are the caller's to write."""
        config = seat.member.config
        self.seats[number] = seat
        self.broken[number] = -1
        self.weights[number] = 0
        self.weights[number, : config.batch] = 1 / (config.batch * config.accumulation)
        self.stack.scale(number, config)

    def advance(self) -> int:
        """One step of every adapter at work; returns how many there were."""
        batches, rows = self._batches(), self._rows()
        losses, norms = self._work(batches, rows, self.weights)
        finite = (losses + norms).isfinite() | (self.broken >= 0)
        self.broken = torch.where(finite, self.broken, self.tick)
        self.history[self.tick % REMEMBERED] = losses
        self.tick += 1
        self._stepped = [number for number, seat in enumerate(self.seats) if seat]
        active = self.active
        ended = False
        for seat in active:
            seat.step += 1
            ended |= seat.step == seat.member.config.steps
        if ended or self.tick % CHECK == 0:
            self.settle()
        return len(active)

    def settle(self) -> None:
        """Ends what is broken or finished, and fills the seats again."""
        broken = self.broken.tolist()
        ended = [n for n, seat in enumerate(self.seats) if seat and seat.step == seat.member.config.steps]
        whole = [number for number in ended if broken[number] < 0]
        values = self.stack.values[whole].cpu() if whole else torch.empty(0)
        losses = self.history.cpu()
        for number, row in zip(whole, values, strict=True):
            seat = self.seats[number]
            if seat:
                loss = float(self._latest(losses, number, seat.step).mean())
                self.desk.accept(self.stack, Finished(seat.member, row, seat.started, seat.seconds, loss))
                self._leave(number)
        for number, seat in enumerate(self.seats):
            if seat and broken[number] >= 0:
                step = seat.step - (self.tick - broken[number]) + 1
                self.desk.failed[seat.member.name] = (
                    f"{seat.member.place}: loss or gradient not finite at step {step} of "
                    f"{seat.member.config.steps}; lower lr or use precision=fp32"
                )
                self._leave(number)
        self.admit()

    def _leave(self, number: int) -> None:
        self.seats[number] = None
        self.broken[number] = -1
        self.weights[number] = 0
        self.stack.clear(number)

    def _latest(self, history: Tensor, number: int, steps: int) -> Tensor:
        """A seat's losses of its latest steps, at most :data:`REMEMBERED`, oldest first."""
        count = min(steps, REMEMBERED)
        rows = [(self.tick - count + back) % REMEMBERED for back in range(count)]
        return history[rows, number]

    def _batches(self) -> list[Batch]:
        turns = [(seat.member, seat.step) if seat else None for seat in self.seats]
        parts = self.draws.parts(turns, self.cohort.config.accumulation)
        return [self.objective.batch(part) for part in parts]

    def _rows(self) -> Tensor:
        rows = [row_of(seat.member.config, seat.step) if seat else IDLE for seat in self.seats]
        return torch.tensor(rows).T[:, :, None].to(self.weights.device)

    def _step(self, batches: Sequence[Batch], rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Forward, backward and update of all seats; losses and gradient norms, (S,) each."""
        self.stack.grads.zero_()
        total = torch.zeros_like(weights[:, 0])
        for batch in batches:
            errors = self.objective.errors(batch).reshape(weights.shape)
            losses = (errors * weights).sum(1)
            self.stack.collect(losses.sum())
            total += losses.detach()
        return total, update(self.stack, rows)
