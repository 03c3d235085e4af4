"""The queue: fair, within limits, cancellable, and the same after a restart."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loracomp.app.database import Database
from loracomp.app.job import SYSTEM, Job, turns
from loracomp.app.jobs import Jobs
from loracomp.app.refusals import LimitError, NotFoundError
from loracomp.app.settings import Limits
from loracomp.app.workers import Control, Workers
from loracomp.errors import FormatError, UsageError

Waiting = st.lists(st.sampled_from(["ann", "bob", "cid", "dan", SYSTEM]), max_size=40)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


def opened(place: Path, **limits: int) -> Jobs:
    return Jobs(Database(place / "jobs.sqlite"), Limits(**limits), place)


@given(Waiting)
def test_no_user_is_served_twice_while_another_waits(users: list[str]) -> None:
    order = turns([(str(n), user, False) for n, user in enumerate(users)], {})
    assert sorted(order) == sorted(map(str, range(len(users))))
    served: Counter[str] = Counter()
    left = Counter(users)
    for id_ in order:
        user = users[int(id_)]
        if user == SYSTEM:
            assert all(count == 0 for name, count in left.items() if name != SYSTEM)
        else:
            assert all(served[user] <= served[name] for name, n in left.items() if n and name != SYSTEM)
        served[user] += 1
        left[user] -= 1


@given(Waiting)
def test_a_users_own_jobs_keep_their_order(users: list[str]) -> None:
    order = turns([(str(n), user, False) for n, user in enumerate(users)], {})
    for _, own in groupby(sorted(order, key=lambda id_: users[int(id_)]), key=lambda id_: users[int(id_)]):
        numbers = [int(id_) for id_ in own]
        assert numbers == sorted(numbers)


def test_who_was_served_last_waits_for_the_others(place: Path) -> None:
    jobs = opened(place)
    for user in ("ann", "ann", "bob", "ann"):
        jobs.submit("generate", {}, user)
    served = [job.user for _ in range(4) if (job := jobs.claim("draw"))]
    assert served == ["ann", "bob", "ann", "ann"]
    jobs.submit("generate", {}, "ann")
    late = jobs.submit("generate", {}, "bob")
    assert jobs.get(late, "bob").position == 0


def test_lanes_do_not_wait_for_each_other(place: Path) -> None:
    jobs = opened(place)
    jobs.submit("generate", {}, "ann")
    index = jobs.submit("index", {}, "ann")
    claimed = jobs.claim("read")
    assert claimed is not None
    assert claimed.id == index
    assert jobs.claim("read") is None


def test_a_user_has_so_many_unfinished_jobs_and_no_more(place: Path) -> None:
    jobs = opened(place, queued=2, queued_in_all=3)
    first = jobs.submit("generate", {}, "ann")
    jobs.submit("grid", {}, "ann")
    with pytest.raises(LimitError, match="2 of your jobs"):
        jobs.submit("generate", {}, "ann")
    jobs.submit("generate", {}, "bob")
    with pytest.raises(LimitError, match="queue is full"):
        jobs.submit("generate", {}, "cid")
    jobs.cancel(first, "ann")
    jobs.submit("generate", {}, "ann")


def test_ids_are_long_and_belong_to_their_user(place: Path) -> None:
    jobs = opened(place, queued=100)
    ids = [jobs.submit("generate", {}, "ann") for _ in range(20)]
    assert len(set(ids)) == 20
    assert min(map(len, ids)) >= 24
    for id_, user in (
        (ids[0], "bob"),
        ("1", "ann"),
        ("' OR 1=1 --", "ann"),
        (ids[0][:-1], "ann"),
        ("", "ann"),
    ):
        for deed in (jobs.get, jobs.cancel, jobs.stop, jobs.resume):
            with pytest.raises(NotFoundError, match="no such job"):
                deed(id_, user)
    assert jobs.list("bob") == []


class Runner:
    """Workers whose jobs step until they are let go."""

    def __init__(self, jobs: Jobs) -> None:
        self.go, self.done = threading.Event(), list[str]()
        kinds = ("generate", "train")
        self.workers = Workers(jobs, dict.fromkeys(kinds, self.run))
        self.workers.start()

    def run(self, job: Job, control: Control) -> Mapping[str, Any]:
        what = job.request.get("what")
        if what == "bad file":
            raise FormatError("/home/ann/secret/x.safetensors: is empty; save it again")
        if what == "bug":
            raise KeyError("/home/ann/secret")
        for step in range(1, 1000):
            control.step(step, 1000)
            if self.go.wait(0.005):
                break
        self.done.append(job.id)
        return {"made": job.id}


@pytest.fixture
def runner(place: Path) -> Iterator[tuple[Jobs, Runner]]:
    jobs = opened(place, queued=50)
    made = Runner(jobs)
    yield jobs, made
    made.workers.stop()


def test_a_running_job_is_told_of_and_ends(runner: tuple[Jobs, Runner], wait: Callable[..., Any]) -> None:
    jobs, made = runner
    id_ = jobs.submit("generate", {}, "ann")
    job = wait(lambda: (job := jobs.get(id_, "ann")).step > 2 and job)
    assert (job.state, job.position, job.steps) == ("running", None, 1000)
    assert job.eta_s > 0
    made.go.set()
    job = wait(lambda: not (job := jobs.get(id_, "ann")).live and job)
    assert (job.state, job.result, job.eta_s) == ("done", {"made": id_}, None)


def test_a_canceled_job_ends_within_a_step(runner: tuple[Jobs, Runner], wait: Callable[..., Any]) -> None:
    jobs, made = runner
    running, waiting = (jobs.submit("generate", {}, "ann") for _ in range(2))
    wait(lambda: jobs.get(running, "ann").step)
    assert jobs.cancel(waiting, "ann").state == "canceled"
    jobs.cancel(running, "ann")
    job = wait(lambda: not (job := jobs.get(running, "ann")).live and job)
    assert job.state == "canceled"
    assert made.done == []
    assert jobs.cancel(running, "ann").state == "canceled"


def test_only_training_is_stopped_and_gone_on_with(
    runner: tuple[Jobs, Runner], wait: Callable[..., Any]
) -> None:
    jobs, made = runner
    image, run = jobs.submit("generate", {}, "ann"), jobs.submit("train", {}, "ann")
    with pytest.raises(UsageError, match="only training"):
        jobs.stop(image, "ann")
    with pytest.raises(UsageError, match="only a job that was stopped"):
        jobs.resume(run, "ann")
    wait(lambda: jobs.get(run, "ann").step)
    jobs.stop(run, "ann")
    wait(lambda: jobs.get(run, "ann").state == "interrupted")
    assert jobs.resume(run, "ann").live
    made.go.set()
    wait(lambda: jobs.get(run, "ann").state == "done")


def test_failures_are_one_line_without_folders(
    runner: tuple[Jobs, Runner], wait: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    jobs, _ = runner
    for what, said in (
        ("bad file", "x.safetensors: is empty; save it again"),
        ("bug", "an error in loracomp; the server's log says more"),
    ):
        id_ = jobs.submit("generate", {"what": what}, "ann")
        job = wait(lambda id_=id_: not (job := jobs.get(id_, "ann")).live and job)
        assert (job.state, job.error) == ("failed", said)
    assert "secret" in caplog.text


def test_a_restart_goes_on_where_the_app_ended(place: Path, wait: Callable[..., Any]) -> None:
    jobs = opened(place)
    made = Runner(jobs)
    running, waiting = (jobs.submit("generate", {"n": n}, "ann") for n in range(2))
    wait(lambda: jobs.get(running, "ann").step)
    made.workers.stop()
    jobs = opened(place)
    assert [job.request["n"] for job in jobs.list("ann")] == [1, 0]
    made = Runner(jobs)
    wait(lambda: jobs.get(running, "ann").step)
    assert jobs.get(waiting, "ann").position == 0
    made.go.set()
    wait(lambda: made.done == [running, waiting])
    made.workers.stop()


def test_a_cancel_is_remembered_over_a_restart(place: Path, wait: Callable[..., Any]) -> None:
    jobs = opened(place)
    id_ = jobs.submit("generate", {}, "ann")
    assert jobs.claim("draw") is not None
    jobs.cancel(id_, "ann")
    jobs = opened(place)
    made = Runner(jobs)
    wait(lambda: jobs.get(id_, "ann").state == "canceled")
    made.workers.stop()
    assert made.done == []


def test_what_brings_the_app_down_each_time_is_given_up(place: Path) -> None:
    id_ = opened(place).submit("generate", {}, "ann")
    for _ in range(4):
        jobs = opened(place)
        jobs.recover()
        jobs.claim("draw")
    jobs = opened(place)
    jobs.recover()
    assert jobs.get(id_, "ann").state == "failed"
    assert jobs.claim("draw") is None
