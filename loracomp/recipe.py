"""A whole composition as data: what it takes to draw an image again, and where images carry it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from loracomp.errors import FormatError, UsageError

CHUNK = "loracomp"


@dataclass(frozen=True)
class Use:
    """One adapter in a composition.

    Attributes:
        source: Shipped name or file.
        weight: Strength; 1.0 is what it was trained at, negative reverses it.
        name: What it calls itself.
        digest: Content hash (:attr:`Adapter.digest`), empty until it is loaded.
        hash: First 12 hex digits of the tensor hash, as image sites look it up (AutoV3).
        settings: Strength and what modifies it, in the short syntax; empty for the weight alone.
        mask: Where in the image it acts, a small picture as text; empty for everywhere.
    """

    source: str
    weight: float = 1.0
    name: str = ""
    digest: str = ""
    hash: str = ""
    settings: str = ""
    mask: str = ""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an image.

    Attributes:
        prompt: What to draw, without ``<lora:…>`` tags.
        negative: What to avoid.
        base: Name, folder, file or hub id.
        uses: The adapters, in order.
        method: A composition method.
        options: Its keyword arguments.
        programs: Gate programs in full, one for all images or one per image; empty where method, options and
            weights say it all.
        scheduler: A name from ``SCHEDULERS``; empty for the model's own.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale.
        guidance_rescale: Share of the guided prediction whose deviation is set back, in [0, 1].
        seed: Seed of the first image of the batch; of all its images where each has a program of its own.
        width: Pixels.
        height: Pixels.
        batch: Images drawn together.
        index: Which image of the batch this is.
        dtype: Arithmetic of the run.
        device: Where it ran.
        versions: Versions of loracomp, torch and diffusers.
    """

    prompt: str
    negative: str = ""
    base: str = "glyph"
    uses: tuple[Use, ...] = ()
    method: str = "merge"
    options: Mapping[str, Any] = field(default_factory=dict)
    programs: tuple[Mapping[str, Any], ...] = ()
    scheduler: str = ""
    steps: int = 25
    guidance: float = 3.0
    guidance_rescale: float = 0.0
    seed: int = 0
    width: int = 128
    height: int = 128
    batch: int = 1
    index: int = 0
    dtype: str = "fp32"
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each image: images of different programs are compared from the same noise."""
        step = 0 if len(self.programs) > 1 else 1
        return tuple(self.seed + step * index for index in range(self.batch))

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that :meth:`to_json` wrote; raises :class:`FormatError` for anything else."""
        from pydantic import TypeAdapter, ValidationError

        known = {field.name for field in fields(cls)}
        try:
            values = json.loads(text)
            if extra := sorted(set(values) - known):
                raise FormatError(f"a recipe of a newer loracomp: {extra[0]!r} is not known here; update")
            return TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FormatError(f"not a recipe of loracomp: {where}: {first['msg']}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"not a recipe of loracomp: {error}") from error

    def infotext(self) -> str:
        """The settings in the form that A1111 and the sites around it read."""
        tags = "".join(f" <lora:{use.name or use.source}:{use.weight:g}>" for use in self.uses)
        lines = [self.prompt + tags]
        if self.negative:
            lines.append(f"Negative prompt: {self.negative}")
        parts = {
            "Steps": self.steps,
            "Sampler": self.scheduler or "default",
            "CFG scale": f"{self.guidance:g}",
            "Seed": self.seed + (0 if len(self.programs) > 1 else self.index),
            "Size": f"{self.width}x{self.height}",
            "Model": Path(self.base).name,
            "LoRA method": self.method,
        }
        hashes = ", ".join(f"{use.name}: {use.hash}" for use in self.uses if use.hash)
        if hashes:
            parts["Lora hashes"] = f'"{hashes}"'
        parts["Version"] = f"loracomp {self.versions.get('loracomp', '')}".strip()
        return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in parts.items())])


def parse_weight(text: str, where: str) -> float:
    """A finite number, or :class:`UsageError` that says where it stood."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or abs(value) == float("inf"):
        raise UsageError(f"{where}: weight {text!r} is not a number; write NAME:0.8")
    return value


def parse_use(text: str, option: str = "--lora") -> Use:
    """``NAME_OR_FILE[:WEIGHT]`` as a :class:`Use`; ``option`` is what messages call it.

    A colon belongs to a path where the file exists with it (``C:\\lora.safetensors``).
    """
    source, colon, weight = text.rpartition(":")
    if not colon or Path(text).is_file() or "\\" in weight or "/" in weight:
        return Use(text)
    if not source:
        raise UsageError(f"{option} {text}: no adapter before the colon; write NAME:0.8")
    return Use(source, parse_weight(weight, f"{option} {text}"))


def save_image(image: Any, path: Path, recipe: Recipe) -> None:
    """Writes a PNG with the infotext (``parameters``) and the whole recipe (``loracomp``) in it.

    The file appears complete or not at all. Raises :class:`UsageError` where it cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", recipe.infotext()) if recipe.infotext().isascii() else info.add_itxt(
        "parameters", recipe.infotext()
    )
    info.add_text(CHUNK, recipe.to_json())
    part = path.with_name(f".{path.name}.part")
    try:
        image.save(part, format="PNG", pnginfo=info)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(
            f"{path}: cannot be written ({error.strerror or error}); choose another --out"
        ) from error


def read_recipe(path: Path) -> Recipe:
    """The recipe inside an image that loracomp drew.

    Raises:
        FormatError: No such file, no image, or an image without a recipe.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(CHUNK)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path}: not a readable image ({error})") from error
    if not isinstance(text, str):
        raise FormatError(f"{path}: carries no recipe; only images that loracomp drew can be repeated")
    try:
        return Recipe.from_json(text)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
