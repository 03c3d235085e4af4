"""From a request, as images and recipes keep it, back to what the form of Compose shows."""

from __future__ import annotations

from typing import Any

from loracomp.app.refusals import NotFoundError
from loracomp.app.requests import AdapterUse, GenerateRequest
from loracomp.app.ui.form import OWN, Values, mark_of
from loracomp.app.ui.markup import Markup, bullets, join, notice
from loracomp.app.ui.picks import pick

_BEYOND = ("options", "guidance_rescale", "programs")


def values_of(app: Any, request: GenerateRequest) -> Values:
    """What every component shows, the seed locked; adapters that are gone are left out."""
    picks, masks = [], {}
    for use in request.adapters:
        try:
            entry = _pick(app, use)
        except NotFoundError:
            continue
        picks.append(entry)
        masks[use.id] = use.mask
    fields = {name: getattr(request, name) for name in _BEYOND if getattr(request, name)}
    if request.guidance == 0:
        # In the form, 0 is the model's own.
        fields["guidance"] = 0.0
    whole = len(picks) == len(request.adapters)
    return Values(
        prompt=request.prompt,
        negative=request.negative,
        picks=picks,
        masks=masks,
        method=request.method,
        steps=request.steps or 0,
        guidance=request.guidance or 0,
        scheduler=request.scheduler or OWN,
        seed=request.seed or 0,
        lock=True,
        batch=request.batch,
        width=request.width or 0,
        height=request.height or 0,
        example="",
        rest={"mark": mark_of(request.method, picks), "fields": fields} if fields and whole else {},
    )


def told(missing: tuple[str, ...], notes: tuple[str, ...]) -> Markup:
    """What was restored, and what could not be."""
    if not missing and not notes:
        return notice("Everything is as it was; Generate draws the same picture.", "good")
    lines = [f"{name} is not in the library" for name in missing] + list(notes)
    return join([notice("Restored, but not all of it:", "warning"), bullets(lines)])


def _pick(app: Any, use: AdapterUse) -> dict[str, Any]:
    entry = pick(app.library.get(use.id), use.weight) | {"settings": use.settings, "mask": bool(use.mask)}
    if use.curve is None:
        return entry
    drawable = use.curve.axis == "run" and use.curve.shape == "linear"
    top = max((value for _, value in use.curve.points), key=abs)
    if not drawable or not top or any(not 0 <= value / top <= 1 for _, value in use.curve.points):
        return entry | {"curve": use.curve.model_dump(mode="json")}
    points = [[place, round(value / top, 4)] for place, value in use.curve.points]
    return entry | {"weight": top, "points": points}
