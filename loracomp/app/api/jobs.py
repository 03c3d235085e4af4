"""Routes of jobs: generate, compare, look, cancel."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Response

from loracomp.app.api.answers import JobAnswer, JobId
from loracomp.app.api.asking import Running, User, picture
from loracomp.app.requests import GenerateRequest, GridRequest

router = APIRouter(tags=["jobs"])


@router.get("/state")
def state(app: Running) -> dict[str, Any]:
    """State of the base model (loading, ready, error), of the library and of the index."""
    return app.engine_state()


@router.get("/methods")
def methods(app: Running) -> list[dict[str, str]]:
    """Composition methods with a line each."""
    return app.methods()


@router.get("/schedulers")
def schedulers(app: Running) -> list[dict[str, str]]:
    """Schedulers with a line each."""
    return app.schedulers()


@router.post("/jobs/generate", status_code=202, response_model=JobId)
def generate(request: GenerateRequest, app: Running, user: User) -> Any:
    """Queue an image or a batch; the result names images of the history."""
    return {"id": app.generate(request, user)}


@router.post("/jobs/grid", status_code=202, response_model=JobId)
def grid(request: GridRequest, app: Running, user: User) -> Any:
    """Queue a grid; the result names the image of each cell, and a sheet for each value of z."""
    return {"id": app.compare(request, user)}


@router.post("/jobs/index", status_code=202, response_model=JobId)
def index(app: Running, user: User) -> Any:
    """Queue bringing the library into the index of what weights do."""
    return {"id": app.index(user)}


@router.get("/jobs", response_model=list[JobAnswer])
def jobs(app: Running, user: User, kind: str = "", limit: int = Query(default=50, ge=1, le=500)) -> Any:
    """Your jobs, newest first."""
    return [job.to_dict() for job in app.jobs.list(user, limit, kind)]


@router.get("/jobs/{id}", response_model=JobAnswer)
def job(id: str, app: Running, user: User) -> Any:
    """One of your jobs."""
    return app.jobs.get(id, user).to_dict()


@router.post("/jobs/{id}/cancel", response_model=JobAnswer)
def cancel(id: str, app: Running, user: User) -> Any:
    """End a job: at once where it waits, within a step where it runs."""
    return app.jobs.cancel(id, user).to_dict()


@router.post("/jobs/{id}/stop", response_model=JobAnswer)
def stop(id: str, app: Running, user: User) -> Any:
    """End training after its step and keep its state."""
    return app.jobs.stop(id, user).to_dict()


@router.post("/jobs/{id}/resume", response_model=JobAnswer)
def resume(id: str, app: Running, user: User) -> Any:
    """Go on with training that was stopped."""
    return app.jobs.resume(id, user).to_dict()


@router.get("/jobs/{id}/preview", response_class=Response)
def preview(id: str, app: Running, user: User) -> Any:
    """A picture of how far a running job is (WebP); 404 where there is none now."""
    return picture(app.previews.path(id, user), fresh=True)


@router.get("/sheets/{id}", response_class=Response)
def sheet(id: str, app: Running, user: User) -> Any:
    """A sheet of a grid (PNG)."""
    return picture(app.drawing.sheet(id, user), "image/png")
