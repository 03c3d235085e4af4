"""Watermarks in the app: keys, verdicts in plain words, and what is said where no codec is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from markworlds import calibration, key, marked, unmarked
from PIL import Image

from loracomp.app import mark_reports
from loracomp.app.marks import AttributeRequest, MarkRequest, VerifyRequest
from loracomp.app.refusals import NotFoundError
from loracomp.app.settings import Settings
from loracomp.app.state import App
from loracomp.errors import ResourceError, UsageError
from loracomp.watermark.attribution import attribute
from loracomp.watermark.calibration import joined
from loracomp.watermark.codec import Codec
from loracomp.watermark.manifest import sign_file
from loracomp.watermark.networks import Shape
from loracomp.watermark.verdict import verify


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small untrained codec, and a calibration of it on noise."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    codec = Codec.fresh(Shape(12, 16, 32, 40, widths=(8, 8), blocks=(1, 1)), "glyph").to("cpu")
    codec.save(folder / "codec.safetensors")
    pictures = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    rows = codec.read(pictures)
    parts = [("noise", rows, torch.arange(len(rows)))]
    joined(parts, "glyph", codec.digest).save(folder / "calibration.safetensors")
    return {"codec": folder / "codec.safetensors", "calibration": folder / "calibration.safetensors"}


@pytest.fixture
def marking(settings: Settings, tools: dict[str, Path]) -> Iterator[App]:
    """An app with the codec."""
    made = App(settings.model_copy(update=tools))
    made.library.scan()
    yield made
    made.stop()


def noise(app: App, folder: Path, count: int, user: str = "ann") -> tuple[str, ...]:
    drawn = torch.Generator().manual_seed(9)
    ids = []
    for number in range(count):
        pixels = (torch.rand(32, 32, 3, generator=drawn) * 255).byte().numpy()
        path = folder / f"noise{number}.png"
        Image.fromarray(pixels).save(path)
        ids.append(app.uploads.take(path, "picture", user).id)
    return tuple(ids)


def test_where_no_codec_is_it_is_said_so_before_anything_starts(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loracomp.watermark.codec.SHIPPED", tmp_path / "none")
    app.library.scan()
    app.marks.keys.create("ann")
    issued = app.marks.keys.issue("mono", "ann")
    missing = app.marks.available()
    assert set(missing) == {"mark", "verify"}
    adapter = app.library.by_name("mono").id
    for deed in (
        lambda: app.marks.submit(MarkRequest(adapter=adapter, key=issued.id, name="m"), "ann"),
        lambda: app.marks.verify(VerifyRequest(key=issued.id, uploads=noise(app, tmp_path, 1)), "ann"),
        lambda: app.marks.attribute(AttributeRequest(uploads=noise(app, tmp_path, 1)), "ann"),
    ):
        with pytest.raises(ResourceError, match="codec"):
            deed()
    assert app.jobs.list("ann") == []


def test_pictures_without_a_mark_show_no_evidence(marking: App, tmp_path: Path) -> None:
    marking.marks.keys.create("ann")
    issued = marking.marks.keys.issue("mono", "ann")
    assert marking.marks.available() == {}
    uploads = noise(marking, tmp_path, 6)
    report = marking.marks.verify(VerifyRequest(key=issued.id, uploads=(*uploads, uploads[0])), "ann")
    assert report.outcome in ("no evidence", "inconclusive")
    assert dict(report.facts)["pictures that count"] == "6"
    many = marking.marks.attribute(AttributeRequest(uploads=uploads), "ann")
    assert many.outcome == "nobody named"
    text = str(report.to_dict()) + str(many.to_dict())
    assert str(tmp_path) not in text
    assert "secret" not in text
    with pytest.raises(NotFoundError):
        marking.marks.verify(VerifyRequest(key=issued.id, uploads=uploads), "bob")
    with pytest.raises(UsageError, match="no pictures"):
        marking.marks.verify(VerifyRequest(key=issued.id), "ann")


@pytest.mark.parametrize(
    ("strength", "count", "outcome", "said"),
    [(8.0, 20, "verified", "carry the mark of mono"), (0.0, 20, "no evidence", "No mark of mono")],
)
def test_verdicts_are_told_in_plain_words(strength: float, count: int, outcome: str, said: str) -> None:
    rows = marked(count, key(), strength) if strength else unmarked(count, 3)[0]
    verdict = verify(rows, key(), calibration())
    assert verdict.decision == outcome
    report = mark_reports.of_verdict(verdict, "mono", ["a note"], None)
    assert (report.outcome, report.notes[-1]) == (outcome, "a note")
    assert said in report.headline
    assert all((report.proves, report.limits, report.sure))
    assert report.data["p"] == verdict.p
    single = mark_reports.of_verdict(replace(verdict, decision="inconclusive", p=None), "mono", [], None)
    assert "cannot be told" in single.headline
    assert "too few" in single.sure


def test_who_drew_them_is_told_by_name() -> None:
    keys = [key("mono"), key("pixel", "bob"), key("ink")]
    parts = attribute(marked(20, keys[1], 8.0), keys, calibration())
    report = mark_reports.of_parts(parts, 0.01, [])
    assert report.outcome == "named"
    assert "pixel (copy for bob)" in report.headline
    assert "mono" not in report.headline


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (0.5, "50% of the time"),
        (1e-3, "once in 1,000 times"),
        (2.49e-7, "once in 4,000,000 times"),
        (0.0, "less than"),
    ],
)
def test_chances_are_told_as_odds(p: float, said: str) -> None:
    assert mark_reports.odds(p).startswith(said)


def test_keys_are_private_issued_once_and_travel(app: App, settings: Settings, tmp_path: Path) -> None:
    ring = app.marks.keys
    with pytest.raises(UsageError, match="owner's key first"):
        ring.issue("mono", "ann")
    owner = ring.create("ann")
    with pytest.raises(UsageError, match="already"):
        ring.create("ann")
    first, second = ring.issue("mono", "ann"), ring.issue("mono", "ann", "bob")
    with pytest.raises(UsageError, match="issued already"):
        ring.issue("mono", "ann")
    assert [row.recipient for row in ring.list("ann")] == ["", "", "bob"]
    files = [ring.file(row.id, "ann") for row in (owner, first, second)]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    with pytest.raises(NotFoundError):
        ring.secret(owner.id, "ann")
    sent = app.uploads.take(files[1], "key", "cid")
    taken = ring.take(sent.id, "cid")
    assert ring.secret(taken.id, "cid").commitment == ring.secret(first.id, "ann").commitment
    with pytest.raises(NotFoundError):
        app.uploads.get(sent.id, "cid")
    ring.remove(first.id, "ann")
    assert not files[1].exists()


def test_manifests_are_held_against_keys(app: App, settings: Settings) -> None:
    import adapterfiles

    file = adapterfiles.write(settings.library[0], 1)[0]
    app.marks.keys.create("ann")
    mine, other = app.marks.keys.issue("mono", "ann"), app.marks.keys.issue("ink", "ann")
    app.library.scan()
    row = app.library.page(query="ink study").rows[0]
    assert app.marks.inspect(row.id, "ann").outcome == "none"
    sign_file(file, app.marks.keys.secret(mine.id, "ann"))
    outcomes = [app.marks.inspect(row.id, "ann", id_).outcome for id_ in ("", mine.id, other.id)]
    assert outcomes == ["untrusted", "valid", "forged"]


def test_marking_runs_in_a_process_and_what_it_says_is_told(
    marking: App, tmp_path: Path, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    marking.marks.keys.create("ann")
    issued = marking.marks.keys.issue("mono", "ann")
    request = MarkRequest(adapter=marking.library.by_name("mono").id, key=issued.id, name="marked")
    with pytest.raises(UsageError, match="stepz"):
        marking.marks.submit(request.model_copy(update={"settings": {"stepz": 1}}), "ann")
    id_ = marking.marks.submit(request, "ann")
    command = marking.marks._command(request, "ann", tmp_path / "marked.safetensors")
    assert command[:2] == ["watermark", "embed"]
    assert str(marking.settings.codec) in command
    marking.jobs.cancel(id_, "ann")
    assert marking.jobs.get(id_, "ann").state == "canceled"
