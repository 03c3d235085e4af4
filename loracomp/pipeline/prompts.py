"""Adapters in the text encoders: every branch of every program reads the prompt as its own adapters do.

A prompt is encoded once for each distinct set of strengths. The pipeline is handed each image's own reading;
where branches or halves of one image read differently, the denoiser's rows get theirs from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from loracomp.fusion import seat
from loracomp.fusion.branches import CONDITIONAL, UNCONDITIONAL, Row, Rows
from loracomp.fusion.gates import GateBank
from loracomp.fusion.program import Program
from loracomp.fusion.stacked import StackedUpdate

Reading = tuple[int, tuple[float, ...]]
"""The program whose block factors apply, and the strength of each adapter."""


class TextHook(ModelHook):
    """Sets the gates of one text encoder where it runs."""

    def __init__(self, updates: Mapping[str, StackedUpdate]) -> None:
        super().__init__()
        self.bank = GateBank(updates)
        self.rows: dict[int, Tensor] = {}
        self.reading: Reading = (0, ())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Writes the gates of the reading at hand."""
        device = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)).device
        program, weights = self.reading
        index = torch.tensor([program])
        columns = self.bank.columns(torch.tensor([[weights]]), index)[0]
        self.bank.write(columns.to(device), index.to(device))
        return args, kwargs


class Prompts:
    """The text side of an attachment.

    Args:
        pipe: The pipeline.
        updates: Stacked layers by path, for each text encoder by name.
    """

    def __init__(self, pipe: Any, updates: Mapping[str, Mapping[str, StackedUpdate]]) -> None:
        self.pipe = pipe
        self.hooks = {name: TextHook(layers) for name, layers in updates.items()}
        self.encodings = 0
        self.programs: tuple[Program, ...] = ()
        self._readings: dict[tuple[int, str, int], Reading] = {}
        self._texts: dict[str, dict[Reading, list[Tensor]]] = {}
        self._denoised = -1
        for name, hook in self.hooks.items():
            seat.install(getattr(pipe, name), hook)

    def set_programs(self, programs: Sequence[Program]) -> None:
        """Replaces the programs; prompts that are encoded from now on follow them."""
        self.programs = tuple(programs)
        self._texts.clear()
        self._readings.clear()
        if not self.hooks:
            return
        tables = [program.table(1, torch.ones(1)) for program in programs]
        for hook in self.hooks.values():
            hook.bank.arrange(tables, tables[0].gates.shape[2])
        for number, program in enumerate(programs):
            own = number if tables[number].blocks or tables[number].ranks else 0
            for half in (CONDITIONAL, UNCONDITIONAL):
                weights = program.text_weights(unconditional=half == UNCONDITIONAL)
                for branch, row in enumerate(weights.tolist()):
                    self._readings[number, half, branch] = (own, tuple(row))
        self._read(self._readings[0, CONDITIONAL, 0])
        self._watch(len(set(self._readings.values())) > 1)

    def leave(self) -> None:
        """Takes everything off the text encoders and the pipeline."""
        self._watch(False)
        for name, hook in self.hooks.items():
            seat.remove(getattr(self.pipe, name), hook)

    def _read(self, reading: Reading) -> None:
        for hook in self.hooks.values():
            hook.reading = reading

    def _watch(self, wanted: bool) -> None:
        """Stands before the pipeline's ``encode_prompt``, or no longer does."""
        if wanted:
            vars(self.pipe)["encode_prompt"] = self._encode
        else:
            vars(self.pipe).pop("encode_prompt", None)

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        """``encode_prompt`` once per reading; each image's rows come from the reading of its first branch."""
        encode = type(self.pipe).encode_prompt.__get__(self.pipe)
        both = "negative_prompt" in signature(encode).parameters
        half = CONDITIONAL if both or self._denoised != self._calls else UNCONDITIONAL
        halves = (CONDITIONAL, UNCONDITIONAL) if both else (half,)
        wanted = [reading for (_, side, _), reading in self._readings.items() if side in halves]
        results: dict[Reading, Any] = {}
        for reading in dict.fromkeys(wanted):
            self._read(reading)
            results[reading] = encode(*args, **kwargs)
            self.encodings += 1
        self._denoised = self._calls
        for place, side in enumerate(halves):
            self._texts[side] = {key: _texts(value, place, both) for key, value in results.items()}
        sides = [halves[place % len(halves)] for place in range(len(next(iter(results.values()))))]
        return tuple(
            self._per_image([result[place] for result in results.values()], list(results), side)
            for place, side in enumerate(sides)
        )

    @property
    def _calls(self) -> int:
        hook = seat.installed(_denoiser(self.pipe))
        return hook.calls if hook is not None else 0

    def _per_image(self, values: list[Any], readings: list[Reading], side: str) -> Any:
        """Of one output in all readings, the rows in which each image is read by its own program."""
        chosen = [readings.index(self._readings[number, side, 0]) for number in range(len(self.programs))]
        first = values[chosen[0]]
        if len(chosen) == 1 or not isinstance(first, Tensor) or len(first) != len(chosen):
            return first
        return torch.stack([values[reading][image] for image, reading in enumerate(chosen)])

    def rows(self, rows: Rows) -> dict[str, Tensor]:
        """Text states and pooled states by row, where one image's rows read differently; else nothing."""
        readings = [self._reading_of(row) for row in rows.rows]
        first = {row.source: self._readings.get((row.program, row.half, 0)) for row in rows.rows}
        if not self._texts or all(r == first[row.source] for row, r in zip(rows.rows, readings, strict=True)):
            return {}
        found: dict[str, list[Tensor]] = {}
        for row, reading in zip(rows.rows, readings, strict=True):
            texts = self._texts[row.half][reading] if reading is not None else []
            for role, text in zip(("states", "pooled"), texts, strict=False):
                found.setdefault(role, []).append(text[row.source % rows.images])
        return {role: torch.stack(texts) for role, texts in found.items()}

    def _reading_of(self, row: Row) -> Reading | None:
        return self._readings.get((row.program, row.half, row.branch))


def _texts(result: Sequence[Any], place: int, both: bool) -> list[Tensor]:
    """Text states and pooled states of one half in what ``encode_prompt`` returned.

    That is (states, negative states[, pooled, negative pooled]) where the negative prompt is encoded
    along, and (states, pooled, position ids) where it is not.
    """
    return list(result[place::2]) if both else list(result[:2])


def _denoiser(pipe: Any) -> nn.Module:
    from loracomp.pipeline.layers import denoiser_of

    return denoiser_of(pipe)[1]
