"""Routes of the library."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from loracomp.app.api.answers import AdapterAnswer, PageAnswer
from loracomp.app.api.asking import Running, User, picture

router = APIRouter(prefix="/adapters", tags=["library"])
Text = Annotated[str, Query(max_length=200)]


@router.get("", response_model=PageAnswer)
def adapters(
    app: Running,
    query: Text = "",
    base: Text = "",
    licence: Text = "",
    tag: Text = "",
    kind: Text = "",
    compatible_with: Text = "",
    sort: Literal["name", "newest", "used", "size"] = "name",
    page: int = Query(default=1, ge=1),
    size: int = Query(default=24, ge=1, le=200),
) -> Any:
    """Adapters whose name, triggers and tags have all words of a query, by base, licence, tag and kind."""
    found = app.library.page(query, base, licence, tag, compatible_with, sort, page, size, kind)
    return found.to_dict()


@router.get("/facets")
def facets(app: Running) -> dict[str, dict[str, int]]:
    """How many adapters there are by base, licence, kind and tag."""
    return app.library.facets()


@router.get("/{id}", response_model=AdapterAnswer)
def adapter(id: str, app: Running) -> Any:
    """One adapter."""
    return app.library.get(id).to_dict()


@router.get("/{id}/thumbnail", response_class=Response)
def thumbnail(id: str, app: Running) -> Any:
    """Its picture of 256 px at most (WebP)."""
    return picture(app.library.thumbnail(id), fresh=True)


@router.get("/{id}/file", response_class=Response)
def file(id: str, app: Running, user: User) -> Any:
    """The file itself."""
    path = app.library.path(id)
    answer = picture(path, "application/octet-stream", fresh=True)
    name = path.name.encode("ascii", "ignore").decode().replace('"', "")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer
