"""What the drawing worker does: images, grids, thumbnails."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loracomp.app import generation, grids, thumbnails
from loracomp.app.engine import Engine
from loracomp.app.ground import CUSTOM
from loracomp.app.history import History
from loracomp.app.job import Job
from loracomp.app.library import Library
from loracomp.app.refusals import NotFoundError
from loracomp.app.requests import AdapterUse, GenerateRequest, GridRequest
from loracomp.app.settings import Settings
from loracomp.app.workers import Control
from loracomp.bases import BASES
from loracomp.errors import LoracompError

_SHEET = re.compile(r"[0-9a-f]{32}")
_THUMBNAIL_STEPS, _SEED = 12, 7


class DrawingJobs:
    """Handlers of the kinds ``generate``, ``grid`` and ``thumbnails``."""

    def __init__(self, settings: Settings, library: Library, history: History, engine: Engine) -> None:
        self._settings, self._library, self._history, self._engine = settings, library, history, engine
        self._sheets = settings.folder("grids")

    def generate(self, job: Job, control: Control) -> Mapping[str, Any]:
        """Draws a batch and keeps it in the history."""
        request = GenerateRequest.model_validate(job.request)
        began = time.monotonic()
        drawn = generation.draw(request, self._library, self._engine, control)
        kept = [self._history.keep(image, used, request, job.id, job.user) for image, used in drawn]
        return {"images": [picture.id for picture in kept], "seconds": round(time.monotonic() - began, 2)}

    def grid(self, job: Job, control: Control) -> Mapping[str, Any]:
        """Draws the cells one by one; each is in the history, and each sheet is a picture of its own."""
        grid = GridRequest.model_validate(job.request)
        todo = grids.cells(grid, self._settings.limits.cells)
        began, told = time.monotonic(), []
        sheets: dict[int, dict[tuple[int, int], tuple[Any, tuple[str, ...]]]] = {}
        for number, cell in enumerate(todo):
            counting = _Part(control, number, len(todo))
            request = cell.request.model_copy(update={"preview": False})
            image, used = generation.draw(request, self._library, self._engine, counting)[0]
            kept = self._history.keep(image, used, request, job.id, job.user)
            labels = tuple(self._label(label) for label in cell.labels)
            sheets.setdefault(cell.z, {})[cell.x, cell.y] = (image, labels)
            told.append({"id": kept.id, "x": cell.x, "y": cell.y, "z": cell.z, "labels": labels})
        plain = self._plain(grid, job, control) if grid.plain else None
        return {
            "cells": told,
            "sheets": [self._sheet(parts, job.user) for _, parts in sorted(sheets.items())],
            "plain": plain,
            "seconds": round(time.monotonic() - began, 2),
        }

    def thumbnail(self, job: Job, control: Control) -> Mapping[str, Any]:
        """Draws a picture for the next adapter that has none."""
        with self._engine.pipe() as pipe:
            from loracomp.pipeline import base_of

            known = base_of(pipe)
        base = known if known in BASES else CUSTOM
        id_ = self._library.unpictured(base)
        if id_ is None:
            return {"more": False}
        row = self._library.get(id_)
        prompt = ", ".join(row.triggers) or row.name
        use = AdapterUse(id=id_, weight=row.weight)
        steps = None if row.kind == "accelerator" else _THUMBNAIL_STEPS
        request = GenerateRequest(prompt=prompt, adapters=(use,), steps=steps, seed=_SEED, preview=False)
        try:
            image, _ = generation.draw(request, self._library, self._engine, control)[0]
            made = thumbnails.shrink(image, self._library.thumbnails / f"{id_}.webp")
        except LoracompError:
            made = False
        self._library.pictured(id_, "made" if made else "never")
        return {"more": True}

    def sheet(self, id_: str, user: str) -> Path:
        """A sheet of a user's grid; raises :class:`NotFoundError`."""
        path = self._sheets / f"{user}-{id_}.png"
        if not _SHEET.fullmatch(id_) or not path.is_file():
            raise NotFoundError("sheet")
        return path

    def _label(self, setting: tuple[str, Any]) -> str:
        field, value = setting
        return f"{field} {self._library.get(value).name if field == 'adapter' else value}"

    def _plain(self, grid: GridRequest, job: Job, control: Control) -> str:
        request = grid.request.model_copy(
            update={
                "adapters": (),
                "batch": 1,
                "programs": (),
                "preview": False,
                "method": "merge",
                "options": {},
            }
        )
        image, used = generation.draw(request, self._library, self._engine, control)[0]
        return self._history.keep(image, used, request, job.id, job.user).id

    def _sheet(self, parts: dict[tuple[int, int], tuple[Any, tuple[str, ...]]], user: str) -> str:
        made = grids.sheet({p: i for p, (i, _) in parts.items()}, {p: t for p, (_, t) in parts.items()})
        id_ = secrets.token_hex(16)
        made.save(self._sheets / f"{user}-{id_}.png", format="PNG")
        return id_


class _Part(Control):
    """A cell's steps as part of the whole grid's."""

    def __init__(self, whole: Control, number: int, count: int) -> None:
        self.__dict__.update(whole.__dict__)
        self._number, self._count = number, count

    def step(self, done: int, total: int, eta_s: float | None = None, message: str = "") -> None:
        """Tells cells and steps of the cell under way."""
        said = message or f"cell {self._number + 1} of {self._count}, step {done} of {total}"
        super().step(self._number, self._count, eta_s, said)
