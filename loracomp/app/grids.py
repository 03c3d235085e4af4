"""X/Y/Z grids: each cell a request of its own, drawn and kept like any other image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from loracomp.app.refusals import LimitError
from loracomp.app.requests import AdapterUse, Axis, GenerateRequest, GridRequest
from loracomp.errors import UsageError

_GAP, _LINE = 6, 16


@dataclass(frozen=True)
class Cell:
    """One image of a grid.

    Attributes:
        x: Column.
        y: Row.
        z: Sheet.
        labels: What each axis is called and set to here.
        request: What is drawn.
    """

    x: int
    y: int
    z: int
    labels: tuple[tuple[str, Any], ...]
    request: GenerateRequest


def cells(grid: GridRequest, most: int) -> list[Cell]:
    """The cells of a grid, row by row and sheet by sheet.

    Raises:
        LimitError: More than ``most``.
        UsageError: An axis that does not fit the request, with the value that does not.
    """
    axes = [axis for axis in (grid.x, grid.y, grid.z) if axis is not None]
    counts = [len(axis.values) for axis in (grid.x, grid.y, grid.z) if axis is not None]
    total = 1
    for count in counts:
        total *= count
    if total > most:
        raise LimitError(f"{total} cells are more than the {most} that are allowed here")
    if len({(axis.field, axis.adapter) for axis in axes}) < len(axes):
        raise UsageError("two axes change the same thing; choose different ones")
    bare = grid.request.model_copy(update={"batch": 1})
    return list(_cells(grid, bare))


def _cells(grid: GridRequest, bare: GenerateRequest) -> Iterator[Cell]:
    absent = Axis(field="seed", values=(bare.seed,), adapter="")
    z_axis, y_axis = grid.z or absent, grid.y or absent
    for (z, deep), (y, down), (x, across) in product(
        enumerate(z_axis.values), enumerate(y_axis.values), enumerate(grid.x.values)
    ):
        request, labels = bare, []
        for axis, value in ((grid.x, across), (grid.y, down), (grid.z, deep)):
            if axis is not None:
                request = changed(request, axis, value)
                labels.append((axis.field, value))
        yield Cell(x, y, z, tuple(labels), request)


def changed(request: GenerateRequest, axis: Axis, value: Any) -> GenerateRequest:
    """The request with one thing set; raises :class:`UsageError` where that makes no sense."""
    if axis.field in ("method", "weight", "adapter"):
        # A program in full would have the last word on all three.
        request = request.model_copy(update={"programs": ()})
    if axis.field == "weight":
        where = _place(request, axis)
        update = {"weight": value, "curve": None}
    elif axis.field == "adapter":
        where = _place(request, axis)
        update = {"id": value}
    else:
        return _valid(request.model_dump() | {axis.field: value}, axis, value)
    uses = [use.model_dump() for use in request.adapters]
    uses[where] |= update
    return _valid(request.model_dump() | {"adapters": uses}, axis, value)


def sheet(images: dict[tuple[int, int], Any], labels: dict[tuple[int, int], tuple[str, ...]]) -> Any:
    """One picture of the cells of a sheet, by (x, y), with what each is set to below it."""
    from PIL import Image, ImageDraw

    width = max(image.width for image in images.values())
    height = max(image.height for image in images.values())
    columns, rows = (max(place[axis] for place in images) + 1 for axis in (0, 1))
    lines = max(len(label) for label in labels.values())
    tall = height + lines * _LINE + _GAP
    paper = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * tall), "white")
    pen = ImageDraw.Draw(paper)
    for (x, y), image in images.items():
        left, top = x * (width + _GAP), y * tall
        paper.paste(image, (left, top))
        for number, text in enumerate(labels[x, y]):
            pen.text((left + 2, top + height + 2 + number * _LINE), text[: width // 6], fill="black")
    return paper


def _place(request: GenerateRequest, axis: Axis) -> int:
    """Position of the adapter that an axis is about."""
    ids = [use.id for use in request.adapters]
    if not ids:
        raise UsageError(f"an axis of {axis.field}, and no adapter to change; pick one first")
    if axis.adapter and axis.adapter not in ids:
        raise UsageError(f"an axis of {axis.field} for an adapter that is not in the image")
    return ids.index(axis.adapter) if axis.adapter else 0


def _valid(values: dict[str, Any], axis: Axis, value: Any) -> GenerateRequest:
    try:
        values["adapters"] = tuple(
            use if isinstance(use, AdapterUse) else AdapterUse(**use) for use in values["adapters"]
        )
        return GenerateRequest(**values)
    except ValidationError as error:
        raise UsageError(f"{axis.field} {value!r}: {error.errors()[0]['msg'].lower()}") from None
