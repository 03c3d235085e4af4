"""Routes of search by what weights do, of auto mode and of advice."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from loracomp.app.api.answers import PageAnswer
from loracomp.app.api.asking import Running, User
from loracomp.app.requests import AdapterUse, Strict
from loracomp.errors import UsageError

router = APIRouter(tags=["search"])


class SearchRequest(Strict):
    """What is looked for: one of a text, a picture and an adapter."""

    text: str = Field(default="", max_length=1000)
    picture: str = Field(default="", max_length=64, description="Id of an uploaded picture.")
    like: str = Field(default="", max_length=64, description="Id of an adapter.")
    base: str = Field(default="", max_length=200)
    count: int = Field(default=24, ge=1, le=100)


class AutoRequest(Strict):
    """A prompt to choose adapters for."""

    prompt: str = Field(min_length=1, max_length=4000)


class DiagnoseRequest(Strict):
    """Adapters that are to be composed."""

    adapters: tuple[AdapterUse, ...] = Field(min_length=2, max_length=12)


@router.post("/search", response_model=PageAnswer)
def search(request: SearchRequest, app: Running, user: User) -> Any:
    """Adapters by what their weights do."""
    if sum(map(bool, (request.text, request.picture, request.like))) != 1:
        raise UsageError("give one of text, picture and like")
    if request.like:
        return app.finding.like(request.like, request.count).to_dict()
    if request.picture:
        path = app.uploads.path(request.picture, user, "picture")
        return app.finding.picture(path, request.base, request.count).to_dict()
    return app.finding.words(request.text, request.base, request.count).to_dict()


@router.post("/auto")
def auto(request: AutoRequest, app: Running) -> dict[str, Any]:
    """What to compose for a prompt, as a request ready to be drawn, and why."""
    return app.finding.choose(request.prompt)


@router.post("/diagnose")
def diagnose(request: DiagnoseRequest, app: Running) -> dict[str, Any]:
    """What adapters will do to each other, and which method to take."""
    return app.finding.diagnose(request.adapters)
