"""What the interface answers with, for its documentation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from loracomp.app.job import State
from loracomp.app.requests import GenerateRequest


class JobId(BaseModel):
    """A job that was queued."""

    id: str = Field(description="Ask for it at /jobs/ID.")


class JobAnswer(BaseModel):
    """A job."""

    id: str
    kind: str = Field(description="generate, grid, train, mark, index, …")
    user: str
    title: str
    request: dict[str, Any]
    state: State
    position: int | None = Field(description="Jobs before it; null unless it is queued.")
    step: int
    steps: int = Field(description="0 while that is not known.")
    eta_s: float | None = Field(description="Seconds left.")
    message: str
    preview: bool = Field(description="Whether /jobs/ID/preview has a picture now.")
    result: dict[str, Any]
    error: str
    created: float = Field(description="Unix time in seconds.")
    started: float | None
    finished: float | None


class AdapterAnswer(BaseModel):
    """An adapter of the library."""

    id: str
    name: str
    base: str
    kind: str
    licence: str
    triggers: list[str]
    tags: list[str]
    rank: int
    bytes: int
    weight: float = Field(description="Strength to begin with.")
    low: float = Field(description="Least strength to offer.")
    high: float = Field(description="Largest strength to offer.")
    thumbnail: bool = Field(description="Whether /adapters/ID/thumbnail has a picture.")
    editable: bool
    error: str
    added: float
    score: float | None
    why: str


class PageAnswer(BaseModel):
    """Some adapters of many."""

    rows: list[AdapterAnswer]
    total: int
    page: int
    pages: int
    notes: list[str]


class ImportAnswer(BaseModel):
    """An adapter that was imported, and the doctor's report."""

    id: str
    report: dict[str, Any]


class ImageAnswer(BaseModel):
    """An image of the history; the file is at /history/ID/image."""

    id: str
    job: str
    prompt: str
    request: GenerateRequest
    recipe: dict[str, Any]
    index: int
    width: int
    height: int
    created: float


class ImagesAnswer(BaseModel):
    """Some images of many."""

    rows: list[ImageAnswer]
    total: int


class SettingsAnswer(BaseModel):
    """Settings taken from an image."""

    request: GenerateRequest
    index: int
    missing: list[str] = Field(description="Names of adapters that are not in the library.")
    notes: list[str]


class RecipeAnswer(BaseModel):
    """A recipe."""

    id: str
    name: str
    note: str
    request: GenerateRequest
    image: str
    created: float
    missing: list[str]


class UploadAnswer(BaseModel):
    """A file that was sent."""

    id: str
    kind: str
    name: str
    bytes: int
