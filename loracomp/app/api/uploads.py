"""Routes of uploads: the body is the file, counted while it arrives."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from loracomp.app.api.answers import UploadAnswer
from loracomp.app.api.asking import Running, User

router = APIRouter(prefix="/uploads", tags=["uploads"])
_BODY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("", status_code=201, response_model=UploadAnswer, openapi_extra={"requestBody": _BODY})
async def upload(
    request: Request,
    app: Running,
    user: User,
    kind: Literal["adapter", "picture", "key"],
    name: str = Query(default="upload", max_length=300),
) -> Any:
    """Send a file as the body of the request; it is kept for a week, and checked at once."""
    with await run_in_threadpool(app.uploads.receive, name, kind, user) as receiver:
        async for chunk in request.stream():
            await run_in_threadpool(receiver.write, chunk)
        return (await run_in_threadpool(receiver.finish)).to_dict()


@router.delete("/{id}", status_code=204)
def remove(id: str, app: Running, user: User) -> None:
    """Delete an upload."""
    app.uploads.remove(id, user)
