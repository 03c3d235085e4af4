"""Routes of training: data, captions, runs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from loracomp.app.api.answers import JobId
from loracomp.app.api.asking import Running, User, picture
from loracomp.app.requests import Strict
from loracomp.app.training_jobs import TrainRequest

router = APIRouter(tags=["training"])


class DataRequest(Strict):
    """New training data."""

    name: str = Field(min_length=1, max_length=80)


class PictureRequest(Strict):
    """A picture for training data."""

    upload: str = Field(max_length=64, description="Id of an uploaded picture.")
    caption: str = Field(default="", max_length=2000)


class CaptionRequest(Strict):
    """A caption; an empty one removes it."""

    caption: str = Field(max_length=2000)


class DataAnswer(BaseModel):
    """Training data."""

    id: str
    name: str
    pictures: int
    own: bool = Field(description="Whether you uploaded them.")


class PictureAnswer(BaseModel):
    """A training picture."""

    id: str
    name: str
    width: int
    height: int
    caption: str


class RunAnswer(BaseModel):
    """How a run goes."""

    curve: list[tuple[int, float]] = Field(description="(step, loss).")
    samples: list[str] = Field(description="Names for /jobs/ID/samples/NAME.")
    notes: list[str]


@router.get("/datasets", response_model=list[DataAnswer])
def datasets(app: Running, user: User) -> Any:
    """Your training data, and that of the configured folders."""
    return [row.to_dict() for row in app.datasets.list(user)]


@router.post("/datasets", status_code=201, response_model=DataAnswer)
def create(request: DataRequest, app: Running, user: User) -> Any:
    """New, empty training data."""
    return app.datasets.create(request.name, user).to_dict()


@router.delete("/datasets/{id}", status_code=204)
def remove(id: str, app: Running, user: User) -> None:
    """Delete training data of your own."""
    app.datasets.remove(id, user)


@router.get("/datasets/{id}/check")
def check(
    id: str, app: Running, user: User, resolution: int = Query(default=0, ge=0, le=8192)
) -> dict[str, Any]:
    """What the data hold and what is worth mending."""
    return app.datasets.check(id, user, resolution)


@router.get("/datasets/{id}/pictures", response_model=list[PictureAnswer])
def pictures(id: str, app: Running, user: User) -> Any:
    """The pictures with their captions."""
    return [found.to_dict() for found in app.datasets.pictures(id, user)]


@router.post("/datasets/{id}/pictures", status_code=201, response_model=PictureAnswer)
def add(id: str, request: PictureRequest, app: Running, user: User) -> Any:
    """Take an uploaded picture into data of your own."""
    return app.datasets.add(id, request.upload, user, request.caption).to_dict()


@router.put("/datasets/{id}/pictures/{picture}/caption", status_code=204)
def caption(id: str, picture: str, request: CaptionRequest, app: Running, user: User) -> None:
    """Write a caption."""
    app.datasets.caption(id, picture, request.caption, user)


@router.delete("/datasets/{id}/pictures/{picture}", status_code=204)
def drop(id: str, picture: str, app: Running, user: User) -> None:
    """Remove a picture from data of your own."""
    app.datasets.drop(id, picture, user)


@router.get("/datasets/{id}/pictures/{name}/thumbnail", response_class=Response)
def thumbnail(id: str, name: str, app: Running, user: User) -> Any:
    """A picture at 256 px at most (WebP)."""
    return picture(app.datasets.thumbnail(id, name, user))


@router.get("/training/presets")
def presets(app: Running) -> list[dict[str, Any]]:
    """What a run does by kind, unless it is told otherwise."""
    return app.training.presets()


@router.post("/jobs/train", status_code=202, response_model=JobId)
def train(request: TrainRequest, app: Running, user: User) -> Any:
    """Queue a training run; it survives a restart of the app, and can be stopped and gone on with."""
    return {"id": app.training.submit(request, user)}


@router.get("/jobs/{id}/training", response_model=RunAnswer)
def run(id: str, app: Running, user: User) -> Any:
    """Loss curve, samples and notes of a run so far."""
    return {
        "curve": app.training.curve(id, user),
        "samples": app.training.samples(id, user),
        "notes": app.training.notes(id, user),
    }


@router.get("/jobs/{id}/samples/{name}", response_class=Response)
def sample(id: str, name: str, app: Running, user: User) -> Any:
    """A sample of a run: of a step (WebP), or the final sheet (PNG)."""
    path = app.training.sample(id, name, user)
    return picture(path, "image/png" if path.suffix == ".png" else "image/webp", fresh=True)
