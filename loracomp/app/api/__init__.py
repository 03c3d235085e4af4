"""The HTTP interface, ``/api/v1``: one file of routes per noun."""

from __future__ import annotations

from fastapi import APIRouter

from loracomp.app.api import adapters, finding, history, jobs, marks, recipes, training, uploads
from loracomp.app.interface import PREFIX


def api_routes() -> APIRouter:
    """All routes."""
    router = APIRouter(prefix=PREFIX)
    for part in (jobs, adapters, finding, history, recipes, training, marks, uploads):
        router.include_router(part.router)
    return router
