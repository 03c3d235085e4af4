"""Changing the library: headers, thumbnails, new files, conversions, duplicates."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from loracomp.app import thumbnails
from loracomp.app.adapter_rows import AdapterRow
from loracomp.app.facts import read_facts
from loracomp.app.ground import CUSTOM
from loracomp.app.history import History
from loracomp.app.job import Job
from loracomp.app.library import Library
from loracomp.app.refusals import public
from loracomp.app.requests import Strict
from loracomp.app.settings import Settings
from loracomp.app.uploads import Uploads
from loracomp.app.workers import Control
from loracomp.errors import FormatError, UsageError

if TYPE_CHECKING:
    from loracomp.formats import Diagnosis
    from loracomp.formats.native import Table

_WORDS = 2000


class EditRequest(Strict):
    """What is to be changed of an adapter; what is left out stays."""

    name: str | None = Field(default=None, min_length=1, max_length=120)
    triggers: tuple[str, ...] | None = Field(default=None, max_length=50)
    tags: tuple[str, ...] | None = Field(default=None, max_length=50)
    licence: str | None = Field(default=None, max_length=120)
    weight: float | None = Field(default=None, ge=-10, le=10, description="Strength to begin with.")
    low: float | None = Field(default=None, ge=-10, le=10, description="Least strength to offer.")
    high: float | None = Field(default=None, ge=-10, le=10, description="Largest strength to offer.")

    @model_validator(mode="after")
    def _words_have_no_commas(self) -> EditRequest:
        if any("," in word for word in (*(self.triggers or ()), *(self.tags or ()))):
            raise ValueError("a trigger or a tag with a comma; give them one by one")
        return self


class ImportRequest(Strict):
    """An uploaded LoRA for the library."""

    upload: str = Field(max_length=64, description="Id of an uploaded adapter.")
    name: str = Field(default="", max_length=80, description="The file's name if left out.")
    allow_partial: bool = Field(default=False, description="Whether to take one that does not load whole.")


class ConvertRequest(Strict):
    """An adapter in another form, as a new file."""

    name: str = Field(min_length=1, max_length=80)
    dialect: str = Field(default="auto", max_length=40, description="auto, kohya, diffusers, …")
    rank: int | None = Field(default=None, ge=1, le=1024, description="Largest rank of a layer.")
    dtype: str = Field(
        default="", max_length=20, description="float16, bfloat16, float32; as it is if empty."
    )


class PictureRequest(Strict):
    """A picture for an adapter: an upload, or an image of the history."""

    upload: str = Field(default="", max_length=64)
    image: str = Field(default="", max_length=64)


class Editing:
    """What writes to the library's folders."""

    def __init__(self, settings: Settings, library: Library, uploads: Uploads, history: History) -> None:
        self._library, self._uploads, self._history = library, uploads, history
        self._trash = settings.folder("trash")

    def edit(self, id_: str, request: EditRequest) -> AdapterRow:
        """Writes names, triggers, tags and licence into the file's header, strengths into the library.

        Raises:
            NotFoundError: No such adapter.
            UsageError: It ships with loracomp, or the strengths are not in order.
        """
        row = self._library.get(id_)
        strengths = {name: getattr(request, name) for name in ("weight", "low", "high")}
        wanted = {name: getattr(row, name) if value is None else value for name, value in strengths.items()}
        if not wanted["low"] <= wanted["weight"] <= wanted["high"] or wanted["low"] == wanted["high"]:
            raise UsageError("the strength to begin with has to lie between the least and the largest one")
        strings = _strings(request)
        if strings:
            self._write(row, strings)
        self._library.database.run(
            "UPDATE adapters SET weight = ?, low = ?, high = ? WHERE id = ?", [*wanted.values(), id_]
        )
        return self._library.get(id_)

    def picture(self, id_: str, request: PictureRequest, user: str) -> AdapterRow:
        """Makes a picture an adapter's thumbnail, in its header and in the library."""
        from loracomp.formats import thumbnail
        from loracomp.formats.thumbnail import KEY

        if bool(request.upload) == bool(request.image):
            raise UsageError("give an uploaded picture or an image of the history")
        row = self._library.get(id_)
        if request.upload:
            source = self._uploads.path(request.upload, user, "picture")
        else:
            source = self._history.get(request.image, user).path
        self._write(row, {KEY: thumbnail(source)})
        thumbnails.shrink(source, self._library.thumbnails / f"{id_}.webp")
        self._library.pictured(id_, "made")
        return self._library.get(id_)

    def report(self, id_: str) -> dict[str, Any]:
        """What the doctor says of an adapter."""
        from loracomp.formats import diagnose

        row = self._library.get(id_)
        return told(diagnose(self._library.path(id_), modules=self._modules(row.base)), row.name)

    def examine(self, upload: str, user: str) -> dict[str, Any]:
        """What the doctor says of an uploaded file, before it is imported."""
        from loracomp.formats import diagnose

        path, name = self._uploads.path(upload, user, "adapter"), self._uploads.get(upload, user).name
        facts = read_facts(path, self._library.ground.modules())
        return told(diagnose(path, modules=self._modules(facts.base)), name)

    def take(self, request: ImportRequest, user: str) -> dict[str, Any]:
        """Puts an uploaded file into the library's first folder; gives its id and the doctor's report.

        Raises:
            FormatError: It cannot be read, or does not load whole and that was not allowed.
            NotFoundError: No such upload.
            UsageError: The name cannot be a file's name.
        """
        report = self.examine(request.upload, user)
        if report["report"] is None:
            raise FormatError(report["error"])
        if not report["complete"] and not request.allow_partial:
            count = len(report["report"]["unmatched"]) + len(report["report"]["damaged"])
            raise FormatError(
                f"{report['file']}: {count} tensors have no place or are damaged; see the report"
            )
        stem = request.name or Path(report["file"]).stem
        plain = "".join(c if c.isalnum() or c in "-_. " else "-" for c in stem).strip("-_. ")
        id_ = self._library.adopt(self._uploads.path(request.upload, user, "adapter"), plain or "adapter")
        self._uploads.remove(request.upload, user)
        return {"id": id_, "report": report}

    def remove(self, id_: str) -> None:
        """Moves an adapter's file into the app's own folder of removed ones."""
        row, path = self._library.get(id_), self._library.path(id_)
        self._check_own(row)
        shutil.move(path, self._trash / f"{int(time.time())}-{path.name}")
        self._library.database.run("UPDATE adapters SET there = 0 WHERE id = ?", (id_,))

    def convert(self, job: Job, control: Control) -> Mapping[str, Any]:
        """Handler of the kind ``convert``."""
        from loracomp.formats import convert
        from loracomp.formats.writing import dtype_named

        request = ConvertRequest.model_validate(job.request["request"])
        control.step(0, 1, message="converting")
        target = self._library.new_file(request.name)
        done = convert(
            self._library.path(job.request["id"]),
            target,
            dialect=request.dialect,
            rank=request.rank,
            dtype=dtype_named(request.dtype) if request.dtype else None,
            modules=self._modules(self._library.get(job.request["id"]).base),
        )
        facts = {"dialect": done.dialect, "error": done.error, "bytes": target.stat().st_size}
        return {"adapter": self._library.note(target), **facts}

    def examine_all(self, job: Job, control: Control) -> Mapping[str, Any]:
        """Handler of the kind ``doctor``: what is wrong with whom, and who is the same as whom."""
        from loracomp.formats import doctor

        rows = self._library.database.rows(
            "SELECT id, path, base FROM adapters WHERE there = 1 ORDER BY name"
        )
        ids = {row["path"]: row["id"] for row in rows}
        duplicates: list[list[str]] = []
        findings: dict[str, list[str]] = {}
        for base in ("", CUSTOM):
            files = [row["path"] for row in rows if (row["base"] == CUSTOM) == bool(base)]
            if not files:
                continue
            checkup = doctor(files, jobs=1, modules=self._modules(base), progress=control.step)
            duplicates += ([ids[file] for file in group] for group in checkup.duplicates)
            findings |= {
                ids[found.file]: [f"{f.level}: {public(f.message)}; {public(f.fix)}" for f in found.findings]
                for found in checkup.diagnoses
                if found.findings
            }
        return {"duplicates": duplicates, "findings": findings}

    def _modules(self, base: str) -> Table | None:
        """What :mod:`loracomp.formats` takes for an adapter of a base that the library names."""
        return self._library.ground.modules() if base == CUSTOM else None

    def _write(self, row: AdapterRow, strings: Mapping[str, str]) -> None:
        from loracomp.watermark.header import with_strings

        self._check_own(row)
        path = self._library.path(row.id)
        with_strings(path, strings)
        self._library.note(path)
        if row.thumbnail is not None:
            # Its weights are the same, and so is the picture that was drawn with them.
            self._library.pictured(row.id, "made")

    def _check_own(self, row: AdapterRow) -> None:
        if not row.editable:
            raise UsageError(
                f"{row.name} ships with loracomp and stays as it is; convert it to have your own"
            )


def told(diagnosis: Diagnosis, name: str) -> dict[str, Any]:
    """A diagnosis as JSON values, under the name that the user knows, without layers and places."""
    place = diagnosis.file
    values = json.loads(json.dumps(diagnosis.to_dict(), default=str).replace(json.dumps(place)[1:-1], name))
    if values["report"] is not None:
        rows = values["report"].pop("rows")
        values["report"]["layers"] = len(rows)
        values["report"]["ranks"] = sorted({row["rank"] for row in rows})
        values["report"]["metadata"].pop("modelspec.thumbnail", None)
    values["error"] = public(values["error"])
    return values


def _strings(request: EditRequest) -> dict[str, str]:
    """Header strings that a request asks for."""
    from loracomp.formats.gate import printable

    lists = {"modelspec.trigger_phrase": request.triggers, "modelspec.tags": request.tags}
    texts = {"modelspec.title": request.name, "modelspec.license": request.licence}
    joined = {key: ", ".join(words) for key, words in lists.items() if words is not None}
    strings = {**joined, **{key: text for key, text in texts.items() if text is not None}}
    return {key: printable(" ".join(text.split()), _WORDS) for key, text in strings.items()}
