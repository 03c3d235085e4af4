"""Routes of the history."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from loracomp.app.api.answers import ImageAnswer, ImagesAnswer, SettingsAnswer
from loracomp.app.api.asking import Running, User, picture
from loracomp.app.requests import Strict

router = APIRouter(tags=["history"])


class RestoreRequest(Strict):
    """A PNG whose settings are wanted."""

    upload: str = Field(max_length=64, description="Id of an uploaded picture.")


@router.get("/history", response_model=ImagesAnswer)
def images(
    app: Running,
    user: User,
    query: str = Query(default="", max_length=200),
    page: int = Query(default=1, ge=1),
    size: int = Query(default=24, ge=1, le=200),
) -> Any:
    """Your images, newest first; those whose prompt has a text, where one is given."""
    rows, total = app.history.list(user, query, page, size)
    return {"rows": [row.to_dict() for row in rows], "total": total}


@router.post("/history/restore", response_model=SettingsAnswer)
def restore_file(request: RestoreRequest, app: Running, user: User) -> Any:
    """The settings inside a PNG that loracomp drew, here or elsewhere."""
    uploaded = app.uploads.get(request.upload, user, "picture")
    return app.restore_upload(uploaded.id, user).to_dict()


@router.get("/history/{id}", response_model=ImageAnswer)
def image(id: str, app: Running, user: User) -> Any:
    """One of your images, with full settings."""
    return app.history.get(id, user).to_dict()


@router.get("/history/{id}/image", response_class=Response)
def file(id: str, app: Running, user: User) -> Any:
    """The image (PNG), with the recipe in its metadata."""
    return picture(app.history.get(id, user).path, "image/png")


@router.get("/history/{id}/thumbnail", response_class=Response)
def thumbnail(id: str, app: Running, user: User) -> Any:
    """The image at 256 px at most (WebP)."""
    return picture(app.history.thumbnail(id, user))


@router.get("/history/{id}/settings", response_model=SettingsAnswer)
def restore(id: str, app: Running, user: User) -> Any:
    """The settings of an image: the same again draws the same."""
    return app.history.restore(id, user).to_dict()


@router.delete("/history/{id}", status_code=204)
def remove(id: str, app: Running, user: User) -> None:
    """Delete an image."""
    app.history.remove(id, user)
