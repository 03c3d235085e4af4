"""Routes of watermarks: keys, marks, verdicts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from loracomp.app.api.answers import JobId
from loracomp.app.api.asking import Running, User
from loracomp.app.marks import AttributeRequest, MarkRequest, VerifyRequest
from loracomp.app.requests import Strict

router = APIRouter(tags=["watermarks"])


class IssueRequest(Strict):
    """The key of one LoRA."""

    lora: str = Field(min_length=1, max_length=120)
    recipient: str = Field(default="", max_length=120, description="Whom this copy is for.")
    bits: int = Field(default=32, ge=8, le=256)


class TakeRequest(Strict):
    """A key file that was made elsewhere."""

    upload: str = Field(max_length=64, description="Id of an uploaded key.")


class InspectRequest(Strict):
    """A LoRA whose manifest is to be checked."""

    adapter: str = Field(max_length=64)
    key: str = Field(default="", max_length=64, description="Id of the key that should have signed it.")


class KeyAnswer(BaseModel):
    """A key; nothing in it is secret."""

    id: str
    kind: str = Field(description="owner or issued")
    lora: str
    recipient: str
    bits: int


class ReportAnswer(BaseModel):
    """A report in plain words, and the same for machines."""

    outcome: str
    headline: str
    proves: str
    limits: str
    sure: str
    facts: list[tuple[str, str]]
    notes: list[str]
    data: dict[str, Any]


@router.get("/marks")
def available(app: Running) -> dict[str, str]:
    """What cannot be done here and why; empty where all can."""
    return app.marks.available()


@router.get("/keys", response_model=list[KeyAnswer])
def keys(app: Running, user: User) -> Any:
    """Your keys."""
    return [key.to_dict() for key in app.marks.keys.list(user)]


@router.post("/keys", status_code=201, response_model=KeyAnswer)
def create(app: Running, user: User) -> Any:
    """Make your owner's key."""
    return app.marks.keys.create(user).to_dict()


@router.post("/keys/issue", status_code=201, response_model=KeyAnswer)
def issue(request: IssueRequest, app: Running, user: User) -> Any:
    """Issue the key of one LoRA from your owner's key."""
    return app.marks.keys.issue(request.lora, user, request.recipient, request.bits).to_dict()


@router.post("/keys/import", status_code=201, response_model=KeyAnswer)
def take(request: TakeRequest, app: Running, user: User) -> Any:
    """Keep a key file that was made elsewhere."""
    return app.marks.keys.take(request.upload, user).to_dict()


@router.get("/keys/{id}/file", response_class=Response)
def secret(id: str, app: Running, user: User) -> Any:
    """Your key file, for a backup: keep it private."""
    return _download(app.marks.keys.file(id, user))


@router.get("/keys/{id}/public", response_class=Response)
def public(id: str, app: Running, user: User) -> Any:
    """What others need to check manifests with."""
    return _download(app.marks.keys.file(id, user, public=True))


@router.delete("/keys/{id}", status_code=204)
def remove(id: str, app: Running, user: User) -> None:
    """Delete a key for good."""
    app.marks.keys.remove(id, user)


@router.post("/jobs/mark", status_code=202, response_model=JobId)
def mark(request: MarkRequest, app: Running, user: User) -> Any:
    """Queue putting a key's mark into an adapter; the result is a new adapter of the library."""
    return {"id": app.marks.submit(request, user)}


@router.post("/verify", response_model=ReportAnswer)
def verify(request: VerifyRequest, app: Running, user: User) -> Any:
    """Whether pictures carry a key's mark."""
    return app.marks.verify(request, user).to_dict()


@router.post("/attribute", response_model=ReportAnswer)
def attribute(request: AttributeRequest, app: Running, user: User) -> Any:
    """Which of several marked LoRAs drew pictures."""
    return app.marks.attribute(request, user).to_dict()


@router.post("/inspect", response_model=ReportAnswer)
def inspect(request: InspectRequest, app: Running, user: User) -> Any:
    """What a LoRA's signed manifest is worth."""
    return app.marks.inspect(request.adapter, user, request.key).to_dict()


def _download(path: Any) -> FileResponse:
    return FileResponse(
        path, media_type="application/octet-stream", filename=path.name, headers={"Cache-Control": "no-store"}
    )
