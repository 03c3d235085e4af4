"""A trained gate: its form, and vectors for every layer of a base; one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import FormatError, ResourceError
from loracomp.fusion.gated.form import Form

KEY = "loracomp.gate"
SHIPPED = "assets/gate/gate.safetensors"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class GateWeights:
    """A gate of a base.

    Attributes:
        form: Which terms it has.
        base: The base that it was trained on.
        layers: Vectors (rows, d_out) by module path, rows named by :attr:`Form.rows`.
        record: What it was trained on and how.
    """

    form: Form
    base: str
    layers: Mapping[str, Tensor]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hash of form and vectors as stored."""
        found = hashlib.sha256(self.form.to_json().encode())
        for path in sorted(self.layers):
            found.update(path.encode() + self.layers[path].detach().half().cpu().numpy().tobytes())
        return found.hexdigest()[:16]

    @classmethod
    def initial(cls, form: Form, base: str, widths: Mapping[str, int], seed: int = 0) -> GateWeights:
        """An untrained gate for layers of these numbers of output channels."""
        generator = torch.Generator().manual_seed(seed)
        return cls(form, base, {path: form.initial(width, generator) for path, width in widths.items()})

    def save(self, path: Path, **record: Any) -> GateWeights:
        """Writes the gate in half precision; raises :class:`ResourceError` where it cannot.

        Args:
            path: File to write.
            **record: Added to :attr:`record`.
        """
        from safetensors.torch import save

        told = {**self.record, **record}
        header = {"version": _VERSION, "form": json.loads(self.form.to_json()), "base": self.base}
        tensors = {name: value.detach().half().cpu().contiguous() for name, value in self.layers.items()}
        payload = save(tensors, {KEY: json.dumps({**header, "record": told}, sort_keys=True)})
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(payload)
            part.replace(path)
        except OSError as error:
            raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None
        return replace(self, record=told)

    @classmethod
    def load(cls, path: Path) -> GateWeights:
        """Reads what :meth:`save` wrote, in float32.

        Raises:
            ResourceError: There is no such file.
            FormatError: It is damaged, or no gate.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise ResourceError(f"{path}: no such gate; train one: loracomp train gate --out {path.name}")
        try:
            with safe_open(path, framework="pt") as file:
                table = json.loads((file.metadata() or {})[KEY])
                layers = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            if table["version"] != _VERSION:
                raise FormatError(f"{path}: a gate of another version of loracomp; train it anew")
            form = Form.from_parts(table["form"])
            if any(value.ndim != 2 or len(value) != len(form.rows) for value in layers.values()):
                raise ValueError("vectors that are not those of its form")
            if not all(bool(value.isfinite().all()) for value in layers.values()):
                raise ValueError("numbers that are not finite")
            return cls(form, str(table["base"]), layers, dict(table["record"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{path}: not a gate that loracomp trained ({error})") from None


def shipped() -> Path:
    """Where the gate lies that comes with the package."""
    return Path(str(files("loracomp"))) / SHIPPED


def open_gate(source: str) -> GateWeights:
    """The gate in a file, or the shipped one for an empty ``source``.

    Raises:
        ResourceError: There is none.
        FormatError: The file is damaged.
    """
    if source:
        path = Path(source).expanduser()
        return _opened(path, path.stat().st_mtime_ns if path.is_file() else 0)
    path = shipped()
    if not path.is_file():
        raise ResourceError(
            f"{path}: the trained gate is missing; train one with "
            "`loracomp train gate` and give it with --option gate=FILE"
        )
    return _opened(path, 0)


@lru_cache(maxsize=4)
def _opened(path: Path, changed: int) -> GateWeights:
    return GateWeights.load(path)
