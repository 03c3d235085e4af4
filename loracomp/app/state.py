"""The app without its screens: what pages and the HTTP interface call."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from loracomp.app import generation, grids
from loracomp.app.database import Database
from loracomp.app.datasets import Datasets
from loracomp.app.drawing_jobs import DrawingJobs
from loracomp.app.editing import ConvertRequest, Editing
from loracomp.app.engine import Engine
from loracomp.app.finding import Finding
from loracomp.app.history import History, Restored
from loracomp.app.job import LANES, READING, Job
from loracomp.app.jobs import Jobs
from loracomp.app.keyring import Keyring
from loracomp.app.library import Library
from loracomp.app.marks import Marks
from loracomp.app.previews import Previews
from loracomp.app.recipes import Recipes
from loracomp.app.requests import GenerateRequest, GridRequest
from loracomp.app.settings import Settings
from loracomp.app.training_jobs import TrainingJobs
from loracomp.app.uploads import Uploads
from loracomp.app.workers import Control, Workers
from loracomp.errors import FormatError, UsageError

_RESCAN_S = 60.0
_HEAD_START_S = 15.0
"""How long, in seconds, opening the base waits for the first look through the library."""


class App:
    """One object for everything.

    Attributes:
        settings: How it was started.
        jobs: The queue.
        library: Adapters.
        editing: What changes adapters.
        finding: Search by what weights do, auto mode, advice.
        history: Images.
        recipes: Named settings.
        uploads: Files that users sent.
        previews: Pictures of jobs under way.
        engine: The base model.
        datasets: Training data.
        training: Training runs.
        marks: Watermarks and their keys.
        drawing: Images, grids and their sheets.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        previews = settings.folder("previews")
        self._held = _hold(settings)
        try:
            self.database = Database(settings.database)
        except FormatError:
            self._held.close()
            raise
        self.jobs = Jobs(self.database, settings.limits, previews)
        self.library = Library(settings, self.database)
        self.engine = Engine(settings)
        self.finding = Finding(settings, self.library, self.engine.settle)
        self.library.came = self._came
        self.finding.wanted = lambda: self.jobs.submit_once("index", "index the library")
        self.history = History(settings, self.database, self.library)
        self.recipes = Recipes(self.database, self.library)
        self.uploads = Uploads(settings, self.database)
        self.previews = Previews(self.jobs)
        self.editing = Editing(settings, self.library, self.uploads, self.history)
        self.datasets = Datasets(settings, self.database, self.uploads)
        self.training = TrainingJobs(settings, self.jobs, self.library, self.datasets, self.engine)
        keyring = Keyring(settings, self.database, self.uploads)
        self.marks = Marks(
            settings, self.jobs, self.library, self.datasets, self.history, self.uploads, keyring
        )
        self.drawing = DrawingJobs(settings, self.library, self.history, self.engine)
        self._looked, self._ended, self._life = 0.0, False, threading.Lock()
        self._seen = threading.Event()
        self.workers = Workers(
            self.jobs,
            {
                "generate": self.drawing.generate,
                "grid": self.drawing.grid,
                "thumbnails": self._thumbnails,
                "index": self.finding.build,
                "train": self.training.train,
                "mark": self.marks.mark,
                "scan": self._scan,
                "convert": self.editing.convert,
                "doctor": self.editing.examine_all,
            },
        )

    def start(self, after: Callable[[], object] = lambda: None) -> None:
        """Opens the base in the background and begins to work; what ran before goes on.

        Args:
            after: Called before anything heavy is imported, on the thread that does so.
        """
        self.engine.start(lambda: self._look(after))
        threading.Thread(target=self._begin, name="loracomp-begin", daemon=True).start()

    def show_shipped(self) -> None:
        """Puts what ships into the library, unless the app has ended."""
        with self._life:
            if not self._ended:
                self.library.note_shipped()

    def stop(self) -> None:
        """Ends after the steps under way; training goes on in processes of its own."""
        with self._life:
            self._ended = True
        self.workers.stop()
        self.finding.close()
        self.database.close()
        self._held.close()

    def engine_state(self) -> dict[str, Any]:
        """State of the base model (``loading``, ``ready``, ``error``) and of the library."""
        return {**self.engine.status(), "library": self.library.status(), "index": self.finding.built}

    def generate(self, request: GenerateRequest, user: str) -> str:
        """Queues an image or a batch and gives the job's id.

        Raises:
            LimitError: Too many jobs, or too large an image.
            NotFoundError: An adapter that is not in the library.
            UsageError: A tag in the prompt that cannot be understood.
        """
        whole = generation.settled(request, self.library, self.settings.limits)
        return self.jobs.submit("generate", whole.model_dump(mode="json"), user, whole.prompt[:80])

    def compare(self, grid: GridRequest, user: str) -> str:
        """Queues a grid and gives the job's id; raises as :meth:`generate`."""
        request = generation.settled(grid.request, self.library, self.settings.limits)
        whole = grid.model_copy(update={"request": request})
        for cell in grids.cells(whole, self.settings.limits.cells):
            generation.settled(cell.request, self.library, self.settings.limits)
        return self.jobs.submit("grid", whole.model_dump(mode="json"), user, f"grid: {request.prompt[:70]}")

    def restore_upload(self, upload: str, user: str) -> Restored:
        """The settings inside an uploaded PNG; raises as :meth:`History.restore_file`."""
        return self.history.restore_file(self.uploads.path(upload, user, "picture"))

    def index(self, user: str) -> str:
        """Queues bringing the library into the index and gives the job's id."""
        return self.jobs.submit("index", {}, user, "index the library")

    def convert(self, id_: str, request: ConvertRequest, user: str) -> str:
        """Queues writing an adapter in another form and gives the job's id."""
        name = self.library.get(id_).name
        self.library.path(id_)
        whole = {"id": id_, "request": request.model_dump(mode="json")}
        return self.jobs.submit("convert", whole, user, f"convert {name}")

    def examine(self, user: str) -> str:
        """Queues the doctor on the whole library, with duplicates, and gives the job's id."""
        return self.jobs.submit("doctor", {}, user, "examine the library")

    def methods(self) -> list[dict[str, str]]:
        """Composition methods with a line each; waits while the base is being opened."""
        self.engine.settle()
        from loracomp.fusion import METHODS

        return [{"name": name, "summary": METHODS.entry(name).summary} for name in METHODS]

    def schedulers(self) -> list[dict[str, str]]:
        """Schedulers with a line each; waits while the base is being opened."""
        self.engine.settle()
        from loracomp.loading import SCHEDULERS

        return [{"name": name, "summary": SCHEDULERS.entry(name).summary} for name in SCHEDULERS]

    def refresh(self) -> None:
        """Queues a look through the library's folders, unless the last one was a moment ago."""
        now = time.time()
        if self.library.scanning is None and now - max(self._looked, self.library.scanned) > _RESCAN_S:
            self._looked = now
            self.jobs.submit_once("scan", "look through the library")

    def _look(self, after: Callable[[], object]) -> None:
        """The gallery, before the base is opened."""
        after()
        with self._life:
            if self._ended:
                return
            self.uploads.expire()
            self.workers.start([READING])
            self.refresh()
        self._seen.wait(_HEAD_START_S)

    def _begin(self) -> None:
        """What needs the base, once it is open or cannot be."""
        self.engine.wait()
        with self._life:
            if self._ended:
                return
            self.workers.start(dict.fromkeys(lane for lane in LANES.values() if lane != READING))
        self.finding.warm()

    def _scan(self, job: Job, control: Control) -> Mapping[str, Any]:
        try:
            opened = self.library.scan(control.step)
        finally:
            self._seen.set()
        self._came(opened > 0)
        return {"opened": opened}

    def _came(self, new: bool = True) -> None:
        """New adapters get a thumbnail and, where there is an index, a place in it."""
        self.jobs.submit_once("thumbnails", "draw thumbnails")
        if new and self.finding.built:
            self.jobs.submit_once("index", "index new files")

    def _thumbnails(self, job: Job, control: Control) -> Mapping[str, Any]:
        result = self.drawing.thumbnail(job, control)
        if result["more"]:
            self.jobs.submit_once("thumbnails", "draw thumbnails")
        return result


def _hold(settings: Settings) -> TextIO:
    """The lock of the data folder; raises :class:`UsageError` where another app has it."""
    file = (settings.folder("previews").parent / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UsageError(
            f"{settings.data}: another app is using this folder; end it or name another --data"
        ) from None
    return file
