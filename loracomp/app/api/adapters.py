"""Routes of the library."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from loracomp.app.api.answers import AdapterAnswer, ImportAnswer, JobId, PageAnswer
from loracomp.app.api.asking import Running, User, picture
from loracomp.app.editing import ConvertRequest, EditRequest, ImportRequest, PictureRequest
from loracomp.app.requests import Strict

router = APIRouter(prefix="/adapters", tags=["library"])
Text = Annotated[str, Query(max_length=200)]


class CheckRequest(Strict):
    """An uploaded LoRA to examine."""

    upload: str = Field(max_length=64, description="Id of an uploaded adapter.")


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


@router.post("/check")
def check(request: CheckRequest, app: Running, user: User) -> dict[str, Any]:
    """What the doctor says of an uploaded file, before it is imported."""
    return app.editing.examine(request.upload, user)


@router.post("/import", status_code=201, response_model=ImportAnswer)
def take(request: ImportRequest, app: Running, user: User) -> Any:
    """Put an uploaded file into the library."""
    return app.editing.take(request, user)


@router.post("/doctor", status_code=202, response_model=JobId)
def doctor(app: Running, user: User) -> Any:
    """Queue the doctor on the whole library; the result names duplicates and what is wrong with whom."""
    return {"id": app.examine(user)}


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


@router.patch("/{id}", response_model=AdapterAnswer)
def edit(id: str, request: EditRequest, app: Running) -> Any:
    """Change name, triggers, tags, licence (in the file's header) and strengths (in the library)."""
    return app.editing.edit(id, request).to_dict()


@router.put("/{id}/thumbnail", response_model=AdapterAnswer)
def set_thumbnail(id: str, request: PictureRequest, app: Running, user: User) -> Any:
    """Make an upload or an image of the history its thumbnail."""
    return app.editing.picture(id, request, user).to_dict()


@router.get("/{id}/report")
def report(id: str, app: Running) -> dict[str, Any]:
    """What the doctor says of it."""
    return app.editing.report(id)


@router.post("/{id}/convert", status_code=202, response_model=JobId)
def convert(id: str, request: ConvertRequest, app: Running, user: User) -> Any:
    """Queue writing it in another dialect, rank or dtype, as a new file."""
    return {"id": app.convert(id, request, user)}


@router.delete("/{id}", status_code=204)
def remove(id: str, app: Running) -> None:
    """Take it out of the library; its file goes to the app's own folder of removed ones."""
    app.editing.remove(id)
