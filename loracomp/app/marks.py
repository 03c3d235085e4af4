"""Watermarks: put a mark into an adapter, verify pictures, name who drew them, check a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from loracomp.app import mark_reports
from loracomp.app.datasets import Datasets
from loracomp.app.following import begin, follow
from loracomp.app.history import History
from loracomp.app.job import Job
from loracomp.app.jobs import Jobs
from loracomp.app.keyring import Keyring
from loracomp.app.library import Library
from loracomp.app.mark_reports import MarkReport
from loracomp.app.requests import Options, Strict
from loracomp.app.settings import Settings
from loracomp.app.uploads import Uploads
from loracomp.app.workers import Control
from loracomp.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from loracomp.watermark.calibration import Calibration
    from loracomp.watermark.codec import Codec
    from loracomp.watermark.pictures import Pictures

_MOST = 200
_NO_CODEC = (
    "no codec for watermarks is here yet; the app was started without --codec, and none ships for {base}"
)
_NO_CALIBRATION = (
    "no calibration of the codec is here yet, so nothing can be verified; start with --calibration"
)


class MarkRequest(Strict):
    """A mark to put into an adapter."""

    adapter: str = Field(max_length=64, description="Id of the adapter; it stays as it is.")
    key: str = Field(max_length=64, description="Id of an issued key.")
    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")
    data: str = Field(default="", max_length=64, description="Id of the data it was trained on, if at hand.")
    settings: Options = Field(default={}, description="Mark settings, as in steps=800.")


class VerifyRequest(Strict):
    """Pictures and a key."""

    key: str = Field(max_length=64, description="Id of an issued key.")
    uploads: tuple[str, ...] = Field(default=(), max_length=_MOST, description="Ids of uploaded pictures.")
    images: tuple[str, ...] = Field(default=(), max_length=_MOST, description="Ids of images of the history.")
    adapter: str = Field(default="", max_length=64, description="Id of the LoRA itself, if at hand.")
    alpha: float = Field(default=1e-3, gt=0, lt=0.5, description="Level of the decision.")


class AttributeRequest(Strict):
    """Pictures and several keys; all of yours where none is named."""

    uploads: tuple[str, ...] = Field(default=(), max_length=_MOST)
    images: tuple[str, ...] = Field(default=(), max_length=_MOST)
    keys: tuple[str, ...] = Field(default=(), max_length=1000)
    rate: float = Field(default=0.01, gt=0, lt=0.5, description="False discovery rate.")


class Marks:
    """Marks with a user's keys, and the handler of the kind ``mark``."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        library: Library,
        datasets: Datasets,
        history: History,
        uploads: Uploads,
        keyring: Keyring,
    ) -> None:
        self._settings, self._jobs, self._library, self._datasets = settings, jobs, library, datasets
        self._history, self._uploads, self.keys = history, uploads, keyring
        self._folder = settings.folder("marks")

    def available(self) -> dict[str, str]:
        """What cannot be done here and why, by ``mark`` and ``verify``; empty where all can."""
        missing: dict[str, str] = {}
        try:
            codec = self._codec()
        except ResourceError as error:
            return {"mark": str(error), "verify": str(error)}
        try:
            self._calibration(codec)
        except ResourceError as error:
            missing["verify"] = str(error)
        return missing

    def submit(self, request: MarkRequest, user: str) -> str:
        """Queues marking and gives the job's id.

        Raises:
            NotFoundError: No such adapter, key or data.
            ResourceError: There is no codec.
            UsageError: A setting that is unknown or out of range.
        """
        from loracomp.training.watermark.settings import mark_settings

        self._library.path(request.adapter)
        self.keys.path(request.key, user)
        if request.data:
            self._datasets.path(request.data, user)
        mark_settings(dict(request.settings))
        self._codec()
        return self._jobs.submit("mark", request.model_dump(mode="json"), user, f"mark {request.name}")

    def mark(self, job: Job, control: Control) -> Mapping[str, Any]:
        """Handler: runs ``loracomp watermark embed`` in a process of its own."""
        request = MarkRequest.model_validate(job.request)
        run, out = begin(self._folder, job, request.name)
        follow(
            run,
            control,
            command=lambda: self._command(request, job.user, out),
            over=lambda: run.result() is not None and out.is_file(),
            hear=lambda latest: None,
            discard=lambda: shutil.rmtree(run.folder, ignore_errors=True),
        )
        facts = run.facts("loss", "steps", "seconds", "layers")
        id_ = self._library.adopt(out, request.name)
        shutil.rmtree(run.folder, ignore_errors=True)
        return {"adapter": id_, "name": request.name, **facts}

    def verify(self, request: VerifyRequest, user: str) -> MarkReport:
        """Whether pictures carry a key's mark.

        Raises:
            FormatError: A picture that cannot be read.
            NotFoundError: No such picture, key or adapter.
            ResourceError: There is no codec, or no calibration of it.
            UsageError: No pictures.
        """
        from loracomp.watermark import manifest
        from loracomp.watermark.signing import public_key
        from loracomp.watermark.verdict import verify

        secret, codec = self.keys.secret(request.key, user), self._codec()
        calibration = self._calibration(codec)
        proof = None
        if request.adapter:
            path = self._library.path(request.adapter)
            proof = manifest.check_file(path, public_key(secret.signing_seed))
        own = proof is not None and proof.status == "valid" and proof.commitment == secret.commitment
        found, notes = self._pictures(request.uploads, request.images, user, codec)
        gain = float(proof.manifest.get("gain", 1.0)) if proof and own else 1.0
        verdict = verify(
            codec.read(found.pixels), secret, calibration, alpha=request.alpha, gain=gain, keyed=codec.keyed,
            weights_proven=own, small=found.small,
        )  # fmt: skip
        return mark_reports.of_verdict(verdict, secret.lora, notes, proof)

    def attribute(self, request: AttributeRequest, user: str) -> MarkReport:
        """Which of several marked LoRAs drew pictures; raises as :meth:`verify`."""
        from loracomp.watermark.attribution import attribute

        ids = request.keys or tuple(key.id for key in self.keys.list(user) if key.kind == "issued")
        if not ids:
            raise UsageError("you have no issued keys to compare with; issue or import some")
        keys, codec = [self.keys.secret(id_, user) for id_ in ids], self._codec()
        if not codec.keyed:
            raise UsageError("this codec's carriers are fixed, and marks of two LoRAs lie on each other")
        calibration = self._calibration(codec)
        found, notes = self._pictures(request.uploads, request.images, user, codec)
        parts = attribute(codec.read(found.pixels), keys, calibration, rate=request.rate)
        return mark_reports.of_parts(parts, request.rate, notes)

    def inspect(self, adapter: str, user: str, key: str = "") -> MarkReport:
        """What a LoRA's signed manifest is worth, held against a user's key where one is named."""
        from loracomp.watermark.manifest import check_file
        from loracomp.watermark.signing import public_key

        trusted = public_key(self.keys.secret(key, user).signing_seed) if key else None
        return mark_reports.of_proof(check_file(self._library.path(adapter), trusted))

    def _command(self, request: MarkRequest, user: str, out: Path) -> Sequence[str]:
        source, key = self._library.path(request.adapter), self.keys.path(request.key, user)
        more = ["--device", self._settings.device, "--json"]
        if self._settings.codec is not None:
            more += ["--codec", str(self._settings.codec)]
        if request.data:
            more += ["--data", str(self._datasets.path(request.data, user))]
        for name, value in request.settings.items():
            more += ["--set", f"{name}={value}"]
        return ["watermark", "embed", str(source), "--key", str(key), "--out", str(out), *more]

    def _codec(self) -> Codec:
        from loracomp.watermark.codec import load_codec, shipped_codec

        base = self._settings.base
        try:
            return load_codec(self._settings.codec or shipped_codec(base))
        except ResourceError:
            raise ResourceError(_NO_CODEC.format(base=Path(base).name)) from None

    def _calibration(self, codec: Codec) -> Calibration:
        from loracomp.cli.watermark_check import open_calibration

        try:
            return open_calibration(self._settings.calibration, self._settings.base, codec)
        except ResourceError:
            raise ResourceError(_NO_CALIBRATION) from None

    def _pictures(
        self, uploads: Sequence[str], images: Sequence[str], user: str, codec: Codec
    ) -> tuple[Pictures, list[str]]:
        """The pictures, and notes on them by the names that the user knows."""
        from loracomp.watermark.pictures import read_pictures

        names = {
            self._uploads.path(id_, user, "picture"): self._uploads.get(id_, user).name for id_ in uploads
        }
        names |= {self._history.get(id_, user).path: f"image {place}" for place, id_ in enumerate(images, 1)}
        if not names:
            raise UsageError("no pictures; add some, the more the surer")
        found = read_pictures(list(names), codec.shape.pixels)
        named = {path.name: name for path, name in names.items()}
        notes = [f"{named[name]}: {note}" for name, _, note in (line.partition(": ") for line in found.notes)]
        twins = [f"{names[Path(one)]} repeats {names[Path(two)]}" for one, two in found.duplicates]
        return found, [*notes, *twins]
