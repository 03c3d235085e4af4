"""Addresses of pictures, as the page asks for them."""

from __future__ import annotations

from urllib.parse import quote

from loracomp.app.adapter_rows import AdapterRow

API = "/api/v1"


def thumbnail(row: AdapterRow) -> str | None:
    """The small picture of an adapter; None where there is none yet."""
    return f"{API}/adapters/{quote(row.id, safe='')}/thumbnail" if row.thumbnail else None


def image(id_: str) -> str:
    """An image of the history."""
    return f"{API}/history/{quote(id_, safe='')}/image"


def small(id_: str) -> str:
    """Its thumbnail."""
    return f"{API}/history/{quote(id_, safe='')}/thumbnail"


def data_picture(data: str, picture: str) -> str:
    """The small picture of a training picture."""
    return f"{API}/datasets/{quote(data, safe='')}/pictures/{quote(picture, safe='')}/thumbnail"


def sample(job: str, name: str) -> str:
    """What an unfinished run draws, or the sheet of a finished one."""
    return f"{API}/jobs/{quote(job, safe='')}/samples/{quote(name, safe='')}"
