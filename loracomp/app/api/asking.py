"""What routes are given: the app, and the user who asks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import FileResponse

from loracomp.app.state import App


def _app(request: Request) -> App:
    app: App = request.app.state.loracomp
    return app


def _user(request: Request) -> str:
    # The guard has put it there; whoever comes without one never gets this far.
    user: str = request.state.user
    return user


Running = Annotated[App, Depends(_app)]
User = Annotated[str, Depends(_user)]


def picture(path: Any, kind: str = "image/webp", fresh: bool = False) -> FileResponse:
    """A picture file as an answer; what may change is asked for again each time."""
    rule = "no-store" if fresh else "private, max-age=3600"
    return FileResponse(path, media_type=kind, headers={"Cache-Control": rule})
