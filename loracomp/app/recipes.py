"""Recipes: named sets of adapters with settings, kept, sent away and taken in."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from loracomp.app.database import Database
from loracomp.app.library import Library
from loracomp.app.refusals import LimitError, NotFoundError
from loracomp.app.requests import AdapterUse, GenerateRequest, Strict
from loracomp.errors import FormatError

FORMAT = "loracomp-recipe/1"
_MOST = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS recipes (id TEXT PRIMARY KEY, user TEXT NOT NULL, name TEXT NOT NULL,
  note TEXT NOT NULL, request TEXT NOT NULL, image TEXT NOT NULL, created REAL NOT NULL);
"""


class Named(Strict):
    """An adapter of an exported recipe, by what it is and not by where it lies."""

    name: str = Field(max_length=200)
    digest: str = Field(default="", max_length=64)
    hash: str = Field(default="", max_length=64)
    use: AdapterUse


class Exported(Strict):
    """A recipe as a file."""

    format: str = FORMAT
    name: str = Field(min_length=1, max_length=120)
    note: str = Field(default="", max_length=2000)
    request: GenerateRequest
    adapters: tuple[Named, ...] = ()


@dataclass(frozen=True)
class SavedRecipe:
    """A recipe of a user.

    Attributes:
        id: What it is asked for by.
        name: What the user calls it.
        note: What the user says of it.
        request: The settings.
        image: Id of an image of the history that shows it; empty for none.
        created: Unix time in seconds.
        missing: Names of its adapters that were not found when it was imported.
    """

    id: str
    name: str
    note: str
    request: GenerateRequest
    image: str
    created: float
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return {**vars(self), "request": self.request.model_dump(mode="json"), "missing": list(self.missing)}


class Recipes:
    """Recipes by user.

    Args:
        database: Where they are kept.
        library: Where their adapters are looked up.
    """

    def __init__(self, database: Database, library: Library) -> None:
        self._database, self._library = database, library
        database.schema(_SCHEMA)

    def save(
        self, name: str, request: GenerateRequest, user: str, note: str = "", image: str = ""
    ) -> SavedRecipe:
        """Keeps a recipe; one of the same name is replaced.

        Raises:
            FormatError: An empty name, or one of more than 120 characters.
            LimitError: A thousand recipes already.
        """
        name = " ".join(name.split())
        if not 0 < len(name) <= 120:
            raise FormatError("a recipe needs a name of 1 to 120 characters")
        if len(self.list(user)) >= _MOST:
            raise LimitError(f"{_MOST} recipes are kept at most; remove one")
        with self._database.change():
            self._database.run("DELETE FROM recipes WHERE user = ? AND name = ?", (user, name))
            id_ = secrets.token_urlsafe(12)
            self._database.run(
                "INSERT INTO recipes VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id_, user, name, note[:2000], request.model_dump_json(), image, time.time()),
            )
        return self.get(id_, user)

    def get(self, id_: str, user: str) -> SavedRecipe:
        """A user's recipe; raises :class:`NotFoundError`."""
        row = self._database.row("SELECT * FROM recipes WHERE id = ? AND user = ?", (id_, user))
        if row is None:
            raise NotFoundError("recipe")
        return _saved(row)

    def list(self, user: str) -> list[SavedRecipe]:
        """A user's recipes by name."""
        rows = self._database.rows(
            "SELECT * FROM recipes WHERE user = ? ORDER BY name COLLATE NOCASE", (user,)
        )
        return [_saved(row) for row in rows]

    def remove(self, id_: str, user: str) -> None:
        """Deletes a user's recipe; raises :class:`NotFoundError`."""
        self.get(id_, user)
        self._database.run("DELETE FROM recipes WHERE id = ?", (id_,))

    def export(self, id_: str, user: str) -> str:
        """A recipe as JSON text that another loracomp takes in: adapters by name and content."""
        saved = self.get(id_, user)
        named = []
        for use in saved.request.adapters:
            row = self._database.row("SELECT name, digest, hash FROM adapters WHERE id = ?", (use.id,))
            if row is not None:
                facts = {"name": row["name"], "digest": row["digest"], "hash": row["hash"]}
                named.append(Named(**facts, use=use))
        bare = saved.request.model_copy(update={"adapters": ()})
        exported = Exported(name=saved.name, note=saved.note, request=bare, adapters=tuple(named))
        return exported.model_dump_json(indent=1)

    def take(self, text: str, user: str) -> SavedRecipe:
        """Keeps a recipe that :meth:`export` wrote, with the adapters that are found here.

        Raises:
            FormatError: It is no recipe.
        """
        try:
            found = Exported.model_validate_json(text)
        except (ValidationError, ValueError, RecursionError) as error:
            line = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not JSON"
            raise FormatError(f"not a recipe that loracomp exported ({line})") from None
        if found.format != FORMAT:
            raise FormatError(f"a recipe of another loracomp ({found.format[:40]!r}); update this one")
        uses, missing = [], []
        for named in found.adapters:
            row = self._library.by_content(named.digest, named.hash, named.name)
            if row is None:
                missing.append(named.name)
            else:
                uses.append(named.use.model_copy(update={"id": row.id}))
        saved = self.save(
            found.name, found.request.model_copy(update={"adapters": tuple(uses)}), user, found.note
        )
        return SavedRecipe(**{**vars(saved), "missing": tuple(missing)})


def _saved(row: sqlite3.Row) -> SavedRecipe:
    return SavedRecipe(
        id=row["id"],
        name=row["name"],
        note=row["note"],
        request=GenerateRequest.model_validate(json.loads(row["request"])),
        image=row["image"],
        created=row["created"],
    )
