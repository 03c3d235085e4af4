"""Every image that was drawn, with all that it takes to draw it again."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.app import thumbnails
from loracomp.app.database import Database
from loracomp.app.generation import use_of_term
from loracomp.app.library import Library
from loracomp.app.refusals import NotFoundError
from loracomp.app.requests import AdapterUse, GenerateRequest, shared
from loracomp.app.settings import Settings
from loracomp.errors import FormatError

if TYPE_CHECKING:
    from loracomp.recipe import Recipe, Use

_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, user TEXT NOT NULL, job TEXT NOT NULL,
  file TEXT NOT NULL, prompt TEXT NOT NULL, request TEXT NOT NULL, recipe TEXT NOT NULL,
  position INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS images_by_user ON images (user, number);
"""


@dataclass(frozen=True)
class Picture:
    """An image of the history.

    Attributes:
        id: What it is asked for by.
        job: Id of the job that drew it.
        path: PNG file with the recipe in it.
        prompt: What was drawn.
        request: What was asked for; the same again draws the same.
        recipe: What was done, as it stands in the file.
        index: Which image of its batch it is.
        width: Pixels.
        height: Pixels.
        created: Unix time in seconds.
    """

    id: str
    job: str
    path: Path
    prompt: str
    request: GenerateRequest
    recipe: dict[str, Any]
    index: int
    width: int
    height: int
    created: float

    def to_dict(self) -> dict[str, Any]:
        """The image as plain JSON values, without its path."""
        values = {name: value for name, value in vars(self).items() if name != "path"}
        return values | {"request": self.request.model_dump(mode="json")}


@dataclass(frozen=True)
class Restored:
    """Settings taken from an image.

    Attributes:
        request: What draws it again.
        index: Which image of the batch it is.
        missing: Names of adapters that are not in the library.
        notes: What else differs from when it was drawn.
    """

    request: GenerateRequest
    index: int
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {**vars(self), "request": self.request.model_dump(mode="json")}


class History:
    """Images by user.

    Args:
        settings: Where they lie.
        database: Where they are listed.
        library: Where adapters are looked up.
    """

    def __init__(self, settings: Settings, database: Database, library: Library) -> None:
        self._folder, self._database, self._library = settings.folder("history"), database, library
        self._base = settings.base
        database.schema(_SCHEMA)

    def keep(self, image: Any, recipe: Recipe, request: GenerateRequest, job: str, user: str) -> Picture:
        """Saves an image with its recipe inside."""
        from loracomp.recipe import save_image

        id_ = secrets.token_urlsafe(18)
        month = time.strftime("%Y-%m")
        (self._folder / month).mkdir(exist_ok=True, mode=0o700)
        name = f"{month}/{id_}.png"
        save_image(image, self._folder / name, recipe)
        self._database.run(
            "INSERT INTO images (id, user, job, file, prompt, request, recipe, position, width, height,"
            " created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                id_, user, job, name, recipe.prompt, request.model_dump_json(), recipe.to_json(),
                recipe.index, *image.size, time.time(),
            ),
        )  # fmt: skip
        return self.get(id_, user)

    def get(self, id_: str, user: str) -> Picture:
        """A user's image; raises :class:`NotFoundError`."""
        row = self._database.row("SELECT * FROM images WHERE id = ? AND user = ?", (id_, user))
        if row is None:
            raise NotFoundError("image")
        return self._picture(row)

    def list(self, user: str, query: str = "", page: int = 1, size: int = 24) -> tuple[list[Picture], int]:
        """A user's images whose prompt has a text, newest first, and how many there are in all."""
        where, values = "user = ? AND instr(lower(prompt), ?) > 0", [user, query.lower().strip()]
        row = self._database.row(f"SELECT COUNT(*) AS n FROM images WHERE {where}", values)
        size, page = min(max(size, 1), 200), max(page, 1)
        rows = self._database.rows(
            f"SELECT * FROM images WHERE {where} ORDER BY number DESC LIMIT ? OFFSET ?",
            [*values, size, (page - 1) * size],
        )
        return [self._picture(row) for row in rows], row["n"] if row else 0

    def thumbnail(self, id_: str, user: str) -> Path:
        """A WebP file of at most 256 px of a user's image, made when it is first asked for."""
        path = self.get(id_, user).path
        small = path.with_suffix(".webp")
        if not small.is_file() and not thumbnails.shrink(path, small):
            raise NotFoundError("image")
        return small

    def remove(self, id_: str, user: str) -> None:
        """Deletes a user's image; raises :class:`NotFoundError`."""
        path = self.get(id_, user).path
        self._database.run("DELETE FROM images WHERE id = ?", (id_,))
        for file in (path, path.with_suffix(".webp")):
            file.unlink(missing_ok=True)

    def restore(self, id_: str, user: str) -> Restored:
        """The settings of a user's image; raises :class:`NotFoundError`."""
        picture = self.get(id_, user)
        missing = []
        for use, spot in zip(picture.request.adapters, picture.recipe["uses"], strict=False):
            try:
                self._library.path(use.id)
            except NotFoundError:
                missing.append(spot["name"] or spot["source"])
        return Restored(picture.request, picture.index, tuple(missing), ())

    def restore_file(self, path: Path) -> Restored:
        """The settings inside a PNG that loracomp drew, here or elsewhere.

        Adapters are found by their content, wherever they lie now; a recipe's own paths are never opened.

        Raises:
            FormatError: An image without a recipe, or one that cannot be drawn again here.
        """
        from loracomp.recipe import read_recipe

        recipe = read_recipe(path)
        uses, missing = [], []
        for spot in recipe.uses:
            row = self._library.by_content(spot.digest, spot.hash, Path(spot.source).stem)
            if row is None:
                missing.append(spot.name or Path(spot.source).stem)
            else:
                uses.append(_use(spot, row.id))
        notes = []
        if recipe.base != Path(self._base).name and recipe.base != self._base:
            notes.append(
                f"drawn with the base {Path(recipe.base).name}, and this one is {Path(self._base).name}"
            )
        programs = () if missing else self._programs(recipe, uses)
        return Restored(_request(recipe, tuple(uses), programs), recipe.index, tuple(missing), tuple(notes))

    def _programs(self, recipe: Recipe, uses: Sequence[AdapterUse]) -> tuple[dict[str, Any], ...]:
        """The recipe's programs, unless method, options and strengths say it all: those can be changed."""
        from loracomp.fusion.syntax import Term, parse_settings
        from loracomp.fusion.variants import program_of
        from loracomp.library import open_adapter

        terms = [
            parse_settings(u.source, u.settings) if u.settings else Term(u.source, u.weight)
            for u in recipe.uses
        ]
        if len(recipe.programs) == 1:
            adapters = [open_adapter(str(self._library.path(use.id))) for use in uses]
            plain = program_of(terms, adapters, recipe.method, recipe.options)
            if json.loads(plain.to_json()) == dict(recipe.programs[0]):
                return ()
        return tuple(dict(part) for part in recipe.programs)

    def _picture(self, row: sqlite3.Row) -> Picture:
        return Picture(
            id=row["id"],
            job=row["job"],
            path=self._folder / row["file"],
            prompt=row["prompt"],
            request=GenerateRequest.model_validate_json(row["request"]),
            recipe=json.loads(row["recipe"]),
            index=row["position"],
            width=row["width"],
            height=row["height"],
            created=row["created"],
        )


def _use(spot: Use, id_: str) -> AdapterUse:
    """A recipe's use as part of a request."""
    from loracomp.fusion.syntax import parse_settings

    if not spot.settings:
        return AdapterUse(id=id_, weight=spot.weight, mask=spot.mask)
    return use_of_term(parse_settings("adapter", spot.settings), id_, spot.mask)


def _request(
    recipe: Recipe, uses: tuple[AdapterUse, ...], programs: tuple[dict[str, Any], ...]
) -> GenerateRequest:
    from pydantic import ValidationError

    try:
        return GenerateRequest(
            prompt=recipe.prompt,
            negative=recipe.negative,
            adapters=uses,
            options=dict(recipe.options),
            scheduler=recipe.scheduler,
            programs=programs,
            **shared(recipe),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FormatError(f"the image's recipe cannot be drawn here: {where}: {first['msg']}") from None
