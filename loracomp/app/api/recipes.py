"""Routes of recipes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import Field

from loracomp.app.api.answers import RecipeAnswer
from loracomp.app.api.asking import Running, User
from loracomp.app.recipes import Exported
from loracomp.app.requests import GenerateRequest, Strict

router = APIRouter(prefix="/recipes", tags=["recipes"])


class RecipeRequest(Strict):
    """A recipe to keep."""

    name: str = Field(min_length=1, max_length=120, description="One of the same name is replaced.")
    request: GenerateRequest
    note: str = Field(default="", max_length=2000)
    image: str = Field(default="", max_length=64, description="Id of an image that shows it.")


@router.get("", response_model=list[RecipeAnswer])
def recipes(app: Running, user: User) -> Any:
    """Your recipes by name."""
    return [saved.to_dict() for saved in app.recipes.list(user)]


@router.post("", status_code=201, response_model=RecipeAnswer)
def save(request: RecipeRequest, app: Running, user: User) -> Any:
    """Keep a recipe."""
    return app.recipes.save(request.name, request.request, user, request.note, request.image).to_dict()


@router.post("/import", status_code=201, response_model=RecipeAnswer)
def take(recipe: Exported, app: Running, user: User) -> Any:
    """Keep a recipe that was exported, with those of its adapters that are found here."""
    return app.recipes.take(recipe.model_dump_json(), user).to_dict()


@router.get("/{id}", response_model=RecipeAnswer)
def recipe(id: str, app: Running, user: User) -> Any:
    """One of your recipes."""
    return app.recipes.get(id, user).to_dict()


@router.get("/{id}/export", response_model=Exported)
def export(id: str, app: Running, user: User) -> Any:
    """A recipe for other people: adapters by name and content."""
    return Response(app.recipes.export(id, user), media_type="application/json")


@router.delete("/{id}", status_code=204)
def remove(id: str, app: Running, user: User) -> None:
    """Delete a recipe."""
    app.recipes.remove(id, user)
