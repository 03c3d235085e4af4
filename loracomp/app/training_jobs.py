"""Training in processes of their own: started, watched, stopped, gone on with, adopted after a restart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from loracomp.app.datasets import Datasets
from loracomp.app.engine import Engine
from loracomp.app.following import Events, begin, follow
from loracomp.app.job import Job
from loracomp.app.jobs import Jobs
from loracomp.app.library import Library
from loracomp.app.processes import LongRun
from loracomp.app.refusals import LimitError, NotFoundError, StoppedError, public
from loracomp.app.requests import Options, Strict
from loracomp.app.settings import Settings
from loracomp.app.workers import Control
from loracomp.errors import LoracompError, UsageError

if TYPE_CHECKING:
    from loracomp.training.config import TrainConfig

_POINTS = 400
_OURS = ("base", "name", "kind", "trigger", "steps", "rank", "lr", "batch", "seed")


class TrainRequest(Strict):
    """An adapter to train."""

    data: str = Field(max_length=64, description="Id of training data.")
    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")
    kind: str = Field(default="style", max_length=20, description="style, subject or accelerator.")
    trigger: str = Field(default="", max_length=300, description="Words that call it, comma-separated.")
    steps: int | None = Field(default=None, ge=1, description="The preset's if left out.")
    rank: int | None = Field(default=None, ge=1, le=1024)
    lr: float | None = Field(default=None, gt=0)
    batch: int | None = Field(default=None, ge=1, le=1024)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    settings: Options = Field(default={}, description="Any other setting of `loracomp train settings`.")


class TrainingJobs:
    """Handlers of the kind ``train``, and what is to be seen of a run.

    Args:
        settings: Limits, base, device.
        jobs: The queue.
        library: Where finished adapters go.
        datasets: What is learned from.
        engine: What draws samples on the way.
    """

    def __init__(
        self, settings: Settings, jobs: Jobs, library: Library, datasets: Datasets, engine: Engine
    ) -> None:
        self._settings, self._jobs, self._library, self._engine = settings, jobs, library, engine
        self._datasets = datasets
        self._folder = settings.folder("training")

    def presets(self) -> list[dict[str, Any]]:
        """What a run does by kind, unless it is told otherwise."""
        from loracomp.training.config import make_config

        kinds = ("style", "subject", "accelerator")
        made = [make_config({"kind": kind, "name": "preset", "base": self._settings.base}) for kind in kinds]
        shown = ("steps", "rank", "lr", "batch", "resolution", "objective")
        return [{"kind": c.kind} | {name: getattr(c, name) for name in shown} for c in made]

    def submit(self, request: TrainRequest, user: str) -> str:
        """Queues a run and gives the job's id.

        Raises:
            LimitError: More steps than are allowed, or too many jobs.
            NotFoundError: No such data.
            TrainingError: Data that cannot be trained from.
            UsageError: A setting that is unknown or out of range.
        """
        config = self._config(request)
        self._datasets.check(request.data, user, config.resolution or 1)
        return self._jobs.submit("train", request.model_dump(mode="json"), user, f"train {request.name}")

    def curve(self, id_: str, user: str) -> list[tuple[int, float]]:
        """(step, loss) of a user's run so far, at most a few hundred points."""
        found: dict[int, float] = {}
        for event in self._run(id_, user).all_events():
            if event.get("event") == "step":
                found[int(event["step"])] = float(event["loss"])
        points = sorted(found.items())
        stride = max(1, len(points) // _POINTS)
        return sorted({*points[::stride], *points[-1:]})

    def notes(self, id_: str, user: str) -> list[str]:
        """What a user's run has said beside its steps."""
        events = self._run(id_, user).all_events()
        return [public(str(event["text"])) for event in events if event.get("event") == "note"]

    def samples(self, id_: str, user: str) -> list[str]:
        """Names of the samples of a user's run: steps at which one was drawn, ``final`` for the sheet."""
        folder = self._run(id_, user).folder
        steps = sorted(int(path.stem.removeprefix("sample-")) for path in folder.glob("sample-*.webp"))
        return [*map(str, steps), *(["final"] if (folder / "final.png").is_file() else [])]

    def sample(self, id_: str, name: str, user: str) -> Path:
        """The file of a sample; raises :class:`NotFoundError`."""
        folder = self._run(id_, user).folder
        if name not in self.samples(id_, user):
            raise NotFoundError("sample")
        return folder / ("final.png" if name == "final" else f"sample-{name}.webp")

    def train(self, job: Job, control: Control) -> Mapping[str, Any]:
        """Handler: starts the run, goes on with it, or only watches it where it still lives."""
        request = TrainRequest.model_validate(job.request)
        run, out = begin(self._folder, job, request.name)
        follow(
            run,
            control,
            command=lambda: self._command(request, job.user, out),
            over=lambda: out.is_file() and not _state(out).is_file(),
            hear=lambda latest: self._hear(latest, out, control),
            discard=lambda: shutil.rmtree(_state(out).parent, ignore_errors=True),
        )
        return self._finished(request, run, out)

    def _config(self, request: TrainRequest) -> TrainConfig:
        from loracomp.training.config import make_config

        if taken := [name for name in request.settings if name in _OURS]:
            raise UsageError(f"{taken[0]}: has a field of its own; take it out of settings")
        given = request.model_dump(include=set(_OURS), exclude_none=True)
        more = {name: value for name, value in request.settings.items() if value is not None}
        config = make_config({**more, **given, "base": self._settings.base})
        limits = self._settings.limits
        if config.steps > limits.training_steps or (config.resolution or 0) > limits.side:
            raise LimitError(
                f"{limits.training_steps} steps and {limits.side} pixels a side are the most that are allowed"
            )
        return config

    def _command(self, request: TrainRequest, user: str, out: Path) -> Sequence[str]:
        more = ["--device", self._settings.device, "--json"]
        if _state(out).is_file():
            return ["train", "resume", str(out), *more]
        config = self._config(request)
        every = config.checkpoint_every or min(200, max(5, config.steps // 10))
        values = json.loads(config.dump()) | {"checkpoint_every": every}
        for name, value in values.items():
            more += ["--set", f"{name}={json.dumps(value)}"] if value is not None else []
        data = self._datasets.path(request.data, user)
        return ["train", "run", str(data), "--out", str(out), *more]

    def _hear(self, latest: Events, out: Path, control: Control) -> None:
        """Draws a sample of each checkpoint."""
        saved = latest.get("checkpoint")
        if saved is None or not self._engine.ready:
            return
        from loracomp.app.samples import draw_sample

        try:
            draw_sample(self._engine, out, out.parent / f"sample-{saved['step']}.webp", control)
        except StoppedError:
            raise
        except (LoracompError, OSError):
            # The run replaced or finished its checkpoint meanwhile; there will be another one.
            return

    def _finished(self, request: TrainRequest, run: LongRun, out: Path) -> dict[str, Any]:
        """Puts the adapter into the library and keeps its samples."""
        sheet = out.with_suffix(".png")
        if sheet.is_file():
            shutil.copyfile(sheet, run.folder / "final.png")
        id_ = self._library.adopt(out, request.name)
        out.unlink()
        facts = run.facts("name", "steps", "seconds", "step_ms", "loss", "layers", "bytes", "digest")
        return {"adapter": id_, "name": request.name, **facts}

    def _run(self, id_: str, user: str) -> LongRun:
        job = self._jobs.get(id_, user)
        return LongRun(self._folder / job.id)


def _state(out: Path) -> Path:
    from loracomp.training.checkpoint import state_path

    return state_path(out)
