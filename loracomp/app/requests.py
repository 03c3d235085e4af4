"""What users ask to be drawn, checked field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from loracomp.recipe import Recipe

_PROMPT = 4000
Number = int | float
Value = str | int | float | bool | None
Options = dict[str, Value | list[Value]]
_SHARED = ("method", "steps", "guidance", "guidance_rescale", "seed", "width", "height", "batch")


class Strict(BaseModel):
    """A request: unknown fields are errors, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Curve(Strict):
    """Strength over the run; the points' values take the place of the weight."""

    points: tuple[tuple[float, float], ...] = Field(
        min_length=1, max_length=64, description="(position, strength), positions ascending."
    )
    axis: Literal["run", "step", "sigma"] = Field(default="run", description="What a position is.")
    shape: Literal["constant", "linear"] = Field(default="linear", description="What is between points.")


class AdapterUse(Strict):
    """One adapter in an image."""

    id: str = Field(max_length=64, description="Id in the library.")
    weight: float = Field(default=1.0, ge=-10, le=10, description="Strength; 1 is as trained.")
    curve: Curve | None = Field(default=None, description="Strength over the run, instead of the weight.")
    settings: str = Field(default="", max_length=500, description="More in the short syntax: up=0.5:text=0.")
    mask: str = Field(
        default="", max_length=2 << 20, description="Picture as base64 or data URI; it acts where white."
    )
    role: Literal["", "subject", "style"] = Field(default="", description="What method roles takes it for.")


class GenerateRequest(Strict):
    """An image, or a batch of them."""

    prompt: str = Field(max_length=_PROMPT, description="What to draw; <lora:NAME:0.8> is understood.")
    negative: str = Field(default="", max_length=_PROMPT, description="What to avoid.")
    adapters: tuple[AdapterUse, ...] = Field(default=(), description="What to compose.")
    method: str = Field(default="merge", max_length=40, description="A composition method.")
    options: Options = Field(default={}, description="Options of the method.")
    scheduler: str = Field(default="", max_length=40, description="A scheduler; the base's own if left out.")
    steps: int | None = Field(default=None, ge=1, description="Denoising steps; the base's own if left out.")
    guidance: float | None = Field(
        default=None, ge=0, le=100, description="Guidance; the base's own if left out."
    )
    guidance_rescale: float | None = Field(default=None, ge=0, le=1, description="Its rescale.")
    seed: int | None = Field(default=None, ge=0, lt=2**63 - 257, description="Random if left out.")
    width: int | None = Field(default=None, ge=8, multiple_of=8, description="Pixels.")
    height: int | None = Field(default=None, ge=8, multiple_of=8, description="Pixels.")
    batch: int = Field(default=1, ge=1, description="Images drawn together.")
    programs: tuple[dict[str, Any], ...] = Field(
        default=(), max_length=64, description="Gate programs in full."
    )
    preview: bool = Field(default=True, description="Whether to show pictures on the way.")

    @model_validator(mode="after")
    def _says_something(self) -> GenerateRequest:
        if not self.prompt.strip():
            raise ValueError("no prompt; say what to draw")
        return self


def shared(drawn: GenerateRequest | Recipe) -> dict[str, Any]:
    """What requests and recipes have in common, under the same names and in the same form."""
    return {name: getattr(drawn, name) for name in _SHARED}


Field_ = Literal["method", "weight", "adapter", "seed", "steps", "guidance", "scheduler", "prompt"]


class Axis(Strict):
    """What changes along one direction of a grid."""

    field: Field_ = Field(description="What changes.")
    values: tuple[Value, ...] = Field(min_length=1, max_length=100, description="What it changes to.")
    adapter: str = Field(
        "", max_length=64, description="Whose weight changes, or who is replaced; the first."
    )


class GridRequest(Strict):
    """A grid of images from one request; x varies along rows, y down columns, z from sheet to sheet."""

    request: GenerateRequest
    x: Axis
    y: Axis | None = None
    z: Axis | None = None
    plain: bool = Field(
        default=False, description="Whether to draw the image without adapters beside it, too."
    )
