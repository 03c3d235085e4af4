"""Training over restarts, stops and cancels; data and captions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loracomp.app.following import follow
from loracomp.app.processes import LongRun
from loracomp.app.refusals import LimitError, NotFoundError, StoppedError
from loracomp.app.settings import Settings
from loracomp.app.state import App
from loracomp.app.training_jobs import TrainRequest
from loracomp.app.workers import Control
from loracomp.errors import TrainingError, UsageError
from loracomp.formats import load

Wait = Callable[..., Any]
SMALL = {"sample_count": 0, "resolution": 64, "batch": 1}


def picture(folder: Path, number: int) -> Path:
    path = folder / f"picture{number}.png"
    Image.new("RGB", (64, 64), (60 * number, 100, 200)).save(path)
    return path


def data(app: App, folder: Path, user: str = "ann") -> str:
    made = app.datasets.create("squares", user)
    for number in range(3):
        upload = app.uploads.take(picture(folder, number), "picture", user)
        app.datasets.add(made.id, upload.id, user, f"a square, number {number}")
    return made.id


def request(data_id: str, **more: Any) -> TrainRequest:
    settings = {**{k: v for k, v in SMALL.items() if k != "batch"}, "checkpoint_every": 2}
    facts = {
        "data": data_id,
        "name": "squares",
        "trigger": "sqr",
        "steps": 8,
        "rank": 1,
        "batch": 1,
        "seed": 1,
    }
    return TrainRequest(**{**facts, "settings": settings, **more})


def test_training_survives_a_restart_of_the_app_and_a_stop(
    app: App, settings: Settings, tmp_path: Path, wait: Wait
) -> None:
    id_ = app.training.submit(request(data(app, tmp_path), steps=24), "ann")
    run = LongRun(settings.data / "training" / id_)
    app.workers.start()
    wait(lambda: run.alive)
    app.stop()
    assert run.alive
    again = App(settings)
    again.workers.start()
    state = run.folder / "squares.safetensors.ckpt" / "state.safetensors"
    wait(state.is_file, 300)
    assert len(starts(run)) == 1
    again.jobs.stop(id_, "ann")
    wait(lambda: again.jobs.get(id_, "ann").state == "interrupted", 300)
    assert not run.alive
    assert state.is_file()
    again.jobs.resume(id_, "ann")
    job = wait(lambda: not (job := again.jobs.get(id_, "ann")).live and job, 300)
    assert (job.state, job.error) == ("done", "")
    assert len(starts(run)) == 2
    assert not state.exists()
    row = again.library.get(job.result["adapter"])
    assert (row.name, row.triggers, row.kind) == ("squares", ("sqr",), "style")
    assert load(again.library.path(row.id)).ranks == (1,)
    assert again.training.curve(id_, "ann")[-1][0] == 24
    again.stop()


def starts(run: LongRun) -> list[dict[str, Any]]:
    return [event for event in run.all_events() if event.get("event") == "start"]


class Following:
    """A job that follows a command in a folder."""

    def __init__(self, app: App, folder: Path, *command: str) -> None:
        self.quitting, self.discarded = threading.Event(), False
        self.id, self.app = app.jobs.submit("train", {}, "ann"), app
        claimed = app.jobs.claim("train")
        assert claimed is not None
        self.run, self.command = LongRun(folder), command
        self.control = Control(claimed, app.jobs, self.quitting)

    def follow(self) -> None:
        def discard() -> None:
            self.discarded = True

        follow(
            self.run, self.control, command=lambda: self.command, over=lambda: False,
            hear=lambda latest: None, discard=discard,
        )  # fmt: skip


def test_what_a_process_says_before_it_fails_is_told(app: App, tmp_path: Path) -> None:
    following = Following(app, tmp_path, "train", "check", str(tmp_path / "nowhere"), "--json")
    with pytest.raises(TrainingError, match="nowhere: no such folder") as caught:
        following.follow()
    assert str(tmp_path) not in str(caught.value)
    assert (following.run.alive, following.run.result()) == (False, None)


def test_a_process_that_dies_is_started_again_and_then_given_up(app: App, tmp_path: Path) -> None:
    following = Following(app, tmp_path, "--version")
    with pytest.raises(TrainingError, match="ended without a word"):
        following.follow()


@pytest.mark.parametrize(("cause", "lives", "discarded"), [("cancel", False, True), ("quit", True, False)])
def test_cancel_ends_a_process_and_the_end_of_the_app_does_not(
    app: App, tmp_path: Path, wait: Wait, cause: str, lives: bool, discarded: bool
) -> None:
    # Any command that goes on until it is ended will do.
    following = Following(app, tmp_path, "app", "--port", "0", "--data", str(tmp_path / "other"))
    caught: list[StoppedError] = []

    def work() -> None:
        try:
            following.follow()
        except StoppedError as stopped:
            caught.append(stopped)

    thread = threading.Thread(target=work)
    thread.start()
    wait(lambda: following.run.alive)
    assert LongRun(tmp_path).alive
    if cause == "cancel":
        app.jobs.cancel(following.id, "ann")
    else:
        following.quitting.set()
    thread.join(30)
    assert [stopped.cause for stopped in caught] == [cause]
    assert (following.run.alive, following.discarded) == (lives, discarded)
    following.run.kill()
    assert not following.run.alive


def test_settings_are_checked_before_anything_starts(app: App, tmp_path: Path) -> None:
    data_id = data(app, tmp_path)
    for wrong, error, said in (
        ({"kind": "portrait"}, UsageError, "kind"),
        ({"settings": {"stepz": 3}}, UsageError, "did you mean steps"),
        ({"settings": {"base": "/etc"}}, UsageError, "field of its own"),
        ({"steps": 30_000}, LimitError, "20000 steps"),
        ({"settings": {"resolution": 4096}}, LimitError, "256 pixels"),
    ):
        with pytest.raises(error, match=said):
            app.training.submit(request(data_id, **wrong), "ann")
    with pytest.raises(NotFoundError):
        app.training.submit(request(data_id), "bob")
    empty = app.datasets.create("empty", "ann")
    with pytest.raises(TrainingError, match="no pictures"):
        app.training.submit(request(empty.id), "ann")
    with pytest.raises(ValueError, match="name"):
        request(data_id, name="../evil")
    assert app.jobs.list("ann") == []


def test_captions_are_written_where_they_are_read(app: App, tmp_path: Path) -> None:
    data_id = data(app, tmp_path)
    first = app.datasets.pictures(data_id, "ann")[0]
    assert first.caption == "a square, number 0"
    app.datasets.caption(data_id, first.id, "something\nelse", "ann")
    folder = app.datasets.path(data_id, "ann")
    assert (folder / "picture0.txt").read_text() == "something else"
    rows = [{"file_name": "picture1.png", "text": "by table", "more": 1}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = app.datasets.pictures(data_id, "ann")[1]
    assert second.caption == "by table"
    app.datasets.caption(data_id, second.id, "anew", "ann")
    assert app.datasets.pictures(data_id, "ann")[1].caption == "anew"
    assert json.loads((folder / "metadata.jsonl").read_text())["more"] == 1
    found = app.datasets.check(data_id, "ann", 128)
    assert (found["pictures"], found["captioned"]) == (3, 3)
    assert "smaller than 128" in found["advice"][0]
    with Image.open(app.datasets.thumbnail(data_id, first.id, "ann")) as small:
        assert small.format == "WEBP"
    app.datasets.drop(data_id, first.id, "ann")
    assert len(app.datasets.pictures(data_id, "ann")) == 2
    app.datasets.remove(data_id, "ann")
    assert not folder.exists()


def test_configured_folders_are_for_everybody_and_stay(settings: Settings, tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "set"
    shared.mkdir(parents=True)
    picture(shared, 1)
    made = App(settings.model_copy(update={"pictures": (tmp_path / "shared",)}))
    (row,) = made.datasets.list("ann")
    assert (row.name, row.pictures, row.own) == ("set", 1, False)
    assert made.datasets.list("bob")[0].id == row.id
    (one,) = made.datasets.pictures(row.id, "bob")
    for deed in (
        lambda: made.datasets.drop(row.id, one.id, "ann"),
        lambda: made.datasets.remove(row.id, "ann"),
    ):
        with pytest.raises(NotFoundError):
            deed()
    assert picture(shared, 1).is_file()
    made.stop()
