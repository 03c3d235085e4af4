"""Search by what weights do, auto mode, and what adapters do to each other: retrieval and advice with ids."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracomp.app.adapter_rows import AdapterRow, Page
from loracomp.app.job import Job
from loracomp.app.library import Library
from loracomp.app.refusals import public
from loracomp.app.requests import AdapterUse, GenerateRequest
from loracomp.app.settings import Settings
from loracomp.app.shipped import SHIPPED
from loracomp.app.workers import Control
from loracomp.errors import LoracompError, UsageError

if TYPE_CHECKING:
    from loracomp.retrieval.search import Answer, Searcher

_log = logging.getLogger(__name__)
_MOST = 100
_NO_INDEX = "the index of what weights do is not built yet; names, triggers and tags were searched"
_BEGUN = "the index of what weights do is not built yet; it is being built now, so ask again in a moment"
_BUSY = "the index of what weights do is being brought up to date; ask again in a moment"


class Finding:
    """The index over the library.

    Args:
        settings: Where it lies.
        library: What it is of.
        settle: Called before anything heavy is imported; see :meth:`loracomp.app.engine.Engine.settle`.

    Attributes:
        progress: Files done and in all while it is being built or brought up to date; None otherwise.
        wanted: Called when somebody asks for an index that is not there.
    """

    def __init__(self, settings: Settings, library: Library, settle: Callable[[], object]) -> None:
        self._settings, self._library, self._settle = settings, library, settle
        self._folder = settings.folder("index") / "collection"
        self._lock = threading.Lock()
        self._open: tuple[Any, Searcher] | None = None
        self.progress: tuple[int, int] | None = None
        self.wanted: Callable[[], object] = lambda: None

    @property
    def built(self) -> bool:
        """Whether there is an index to search."""
        return (self._folder / "collection.json").is_file()

    def build(self, job: Job, control: Control) -> Mapping[str, Any]:
        """Handler of the kind ``index``: brings all files into the index."""
        from loracomp.retrieval.building import build

        control.step(0, 0, message="opening the index")
        folders = [
            folder for folder in (SHIPPED, *self._settings.adapters) if any(folder.rglob("*.safetensors"))
        ]

        def step(done: int, total: int) -> None:
            self.progress = (done, total)
            control.step(done, total)

        self.progress = (0, 0)
        try:
            with self._searching(create=True) as (collection, _):
                report = build(folders, collection, jobs=1, progress=step)
        finally:
            self.progress = None
            self.close()
        unreadable = {Path(path).name: public(why) for path, why in report.dead.items()}
        return {**report.to_dict(), "dead": unreadable}

    def words(self, query: str, base: str = "", count: int = 24) -> Page:
        """Adapters for a text; by names alone where there is no index."""
        if not self.built or self.progress is not None or not query.strip():
            found = self._library.page(query, base=base, size=count)
            return replace(found, notes=(_NO_INDEX,)) if query.strip() else found
        return self._answered(lambda searcher: searcher.text(query, min(count, _MOST), base=base or None))

    def picture(self, path: Path, base: str = "", count: int = 24) -> Page:
        """Adapters for a picture.

        Raises:
            UsageError: There is no index, or nothing here understands pictures.
        """
        from loracomp.cli.pictures import describer, open_picture

        self._needed()
        image = open_picture(path)
        known = base or self._library.ground.name or self._settings.base
        return self._answered(
            lambda searcher: searcher.image(image, min(count, _MOST), base=known, describer=describer)
        )

    def like(self, id_: str, count: int = 24) -> Page:
        """Adapters that do to weights what another one does; raises as :meth:`picture`."""
        self._needed()
        path = str(self._library.path(id_))
        found = self._answered(lambda searcher: searcher.like(path, min(count, _MOST)))
        rows = tuple(row for row in found.rows if row.id != id_)
        return replace(found, rows=rows, total=len(rows))

    def choose(self, prompt: str, base: str = "") -> dict[str, Any]:
        """What to compose for a prompt, and why, as a request ready to be drawn.

        Raises:
            UsageError: No prompt, or no index.
        """
        from loracomp.library import open_adapter
        from loracomp.retrieval.auto import choose

        if not prompt.strip():
            raise UsageError("no prompt to choose by; say what to draw")
        self._needed()
        known = base or self._library.ground.name or self._settings.base
        with self._searching() as (_, searcher):
            choice = choose(prompt, searcher, lambda path: open_adapter(path, known), base=known)
        uses, said = [], []
        for chosen in choice.adapters:
            row = self._row(chosen.path)
            if row is not None:
                uses.append(AdapterUse(id=row.id, weight=chosen.weight))
                facts = {"span": chosen.span, "confidence": chosen.confidence, "why": chosen.why}
                said.append({"id": row.id, "name": row.name, "weight": chosen.weight, **facts})
        request = GenerateRequest(prompt=choice.prompt, adapters=tuple(uses), method=choice.method or "merge")
        return {
            "request": request.model_dump(mode="json"),
            "adapters": said,
            "left": choice.left,
            "rejected": {name: public(why) for name, why in choice.rejected.items()},
            "lines": [public(line) for line in choice.lines()],
        }

    def diagnose(self, uses: tuple[AdapterUse, ...]) -> dict[str, Any]:
        """What two or more adapters will do to each other, which method to take, and why.

        Raises:
            UsageError: Fewer than two.
        """
        self._settle()
        from loracomp.cli.diagnose import report_values
        from loracomp.fusion.advice import advise
        from loracomp.fusion.interference import interference
        from loracomp.library import open_adapter
        from loracomp.pipeline.measured import recall

        if len(uses) < 2:
            raise UsageError("one adapter has nothing to get in the way of; pick two or more")
        paths = [self._library.path(use.id) for use in uses]
        adapters = [open_adapter(str(path)) for path in paths]
        known = [recall(a, a.base, [path.parent]) for a, path in zip(adapters, paths, strict=True)]
        report = interference(
            adapters,
            [use.weight for use in uses],
            bands=[found.frequency.band if found and found.frequency else None for found in known],
        )
        return {**report_values(report), "advice": asdict(advise(report))}

    def warm(self) -> None:
        """Opens the index and its text encoder, if there is one, so that no search has to wait for them."""
        try:
            if self.built and self.progress is None:
                with self._searching() as (_, searcher):
                    searcher.text("warm", 1)
        except LoracompError as error:
            _log.warning("the index cannot be opened: %s", public(error))

    def close(self) -> None:
        """Lets go of the index; the next search opens it anew."""
        with self._lock:
            if self._open is not None:
                self._open[0].close()
            self._open = None

    def _needed(self) -> None:
        if self.progress is not None:
            raise UsageError(_BUSY)
        if not self.built:
            self.wanted()
            raise UsageError(_BEGUN)

    @contextmanager
    def _searching(self, create: bool = False) -> Iterator[tuple[Any, Searcher]]:
        """The collection and a searcher, opened once and used by one caller at a time."""
        self._settle()
        from loracomp.retrieval.collection import Collection
        from loracomp.retrieval.encoder import shipped_encoders
        from loracomp.retrieval.search import Searcher

        with self._lock:
            if self._open is None:
                collection: Any = Collection(
                    self._folder, create=create, encoders=shipped_encoders(self._folder)
                )
                self._open = collection, Searcher(collection, collection.encoders)
            yield self._open

    def _answered(self, ask: Any) -> Page:
        with self._searching() as (_, searcher):
            answer: Answer = ask(searcher)
        rows = []
        for hit in answer.hits:
            row = self._row(hit.row["path"])
            if row is not None:
                made = ", ".join(
                    f"{name} {value:.2f}" for name, value in hit.explain.items() if "_" not in name
                )
                rows.append(replace(row, score=round(hit.score, 4), why=made))
        return Page(tuple(rows), len(rows), 1, 1, tuple(public(note) for note in answer.notes))

    def _row(self, path: str) -> AdapterRow | None:
        row = self._library.database.row("SELECT id FROM adapters WHERE path = ? AND there = 1", (path,))
        try:
            return None if row is None else self._library.get(row["id"])
        except LoracompError:
            return None
