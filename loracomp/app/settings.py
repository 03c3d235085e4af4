"""What the app is started with: folders, address, accounts and limits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loracomp.errors import UsageError

LOCAL = "local"
"""The one user of an app that only this machine can reach."""
OWNER = "owner"
"""The user of a token without a name."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_LEAST = 16


class Limits(BaseModel):
    """What one request, and one user, may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queued: int = Field(default=20, ge=1, description="Unfinished jobs of one user.")
    queued_in_all: int = Field(default=1000, ge=1, description="Unfinished jobs of all users.")
    upload_bytes: int = Field(default=2 << 30, ge=1, description="Largest upload.")
    user_bytes: int = Field(default=20 << 30, ge=1, description="Uploads of one user that are kept.")
    picture_bytes: int = Field(default=64 << 20, ge=1, description="Largest uploaded picture.")
    body_bytes: int = Field(default=4 << 20, ge=1, description="Largest request that is no upload.")
    side: int = Field(default=2048, ge=8, description="Longest side of an image in pixels.")
    steps: int = Field(default=150, ge=1, description="Most denoising steps.")
    batch: int = Field(default=16, ge=1, description="Most images drawn together.")
    cells: int = Field(default=100, ge=1, description="Most cells of a grid.")
    adapters: int = Field(default=12, ge=1, description="Most adapters in an image.")
    training_steps: int = Field(default=20_000, ge=1, description="Most steps of a training run.")


class Settings(BaseModel):
    """How the app runs; folders are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(description="Folder of jobs, history, recipes, thumbnails, uploads and index.")
    library: tuple[Path, ...] = Field(
        default=(), description="Folders of LoRA files; the first takes new ones."
    )
    pictures: tuple[Path, ...] = Field(default=(), description="Folders of training data.")
    base: str = Field(default="glyph", description="Name, diffusers folder, checkpoint or hub id.")
    device: str = Field(default="auto", description="cpu, cuda, mps or auto.")
    dtype: str = Field(default="auto", description="fp32, bf16, fp16 or auto.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=7860, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    tokens: dict[str, str] = Field(
        default={}, description="Secret by user; required unless only this machine."
    )
    codec: Path | None = Field(default=None, description="Watermark codec; the shipped one if left out.")
    calibration: Path | None = Field(
        default=None, description="Its calibration; the shipped one if left out."
    )
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _absolute(self) -> Settings:
        for name in ("data", "codec", "calibration"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, path.expanduser().resolve())
        for name in ("library", "pictures"):
            folders = tuple(dict.fromkeys(path.expanduser().resolve() for path in getattr(self, name)))
            object.__setattr__(self, name, folders)
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the app."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @cached_property
    def database(self) -> Path:
        """File of jobs, history, recipes and what is known of adapters."""
        return self.data / "jobs.sqlite"

    @cached_property
    def adapters(self) -> tuple[Path, ...]:
        """Folders of adapters, the first of which takes new ones; one of its own where none is given."""
        return self.library or (self.folder("adapters"),)

    def folder(self, name: str) -> Path:
        """A folder inside the data folder, made where it is missing, readable by its owner alone.

        Raises :class:`UsageError` where it cannot be made.
        """
        path = self.data / name
        try:
            self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"{path}: cannot be made ({error.strerror}); choose another --data") from None
        return path


def read_tokens(texts: Iterable[str]) -> dict[str, str]:
    """Values of ``--token``, ``SECRET`` or ``NAME=SECRET``, as secrets by user.

    Raises:
        UsageError: A name that is none, a secret that is too short, or one that is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, secret = text.partition("=")
        name, secret = (name, secret) if equals and _NAME.fullmatch(name) else (OWNER, text)
        if len(secret) < _LEAST:
            raise UsageError(
                f"--token: the secret of {name} has fewer than {_LEAST} characters; "
                'make one: python -c "import secrets; print(secrets.token_urlsafe(24))"'
            )
        if name in found or secret in found.values():
            raise UsageError(f"--token: {name} or its secret is given twice; name users: --token NAME=SECRET")
        found[name] = secret
    return found
