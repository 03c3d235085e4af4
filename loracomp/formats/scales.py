"""Strength as PEFT states it: a JSON text in the header, or a config file beside the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

HEADER_KEY = "lora_adapter_metadata"
_LITERAL = re.compile(r"\^?[\w.\\-]+\$?")
_CONFIG_BYTES = 1 << 20

Alpha = Callable[[str, int], float | None]
"""Alpha of a layer from its module path and rank, in kohya's meaning (scale = alpha / rank)."""


@dataclass(frozen=True)
class Stated:
    """What a PEFT configuration says of strength: the configurations by component ('' for all)."""

    configs: Mapping[str, Mapping[str, Any]]

    def alpha(self, path: str, rank: int) -> float | None:
        """Alpha of the layer at ``path`` such that alpha / rank is its scale; None where nothing is said."""
        component, _, inside = path.partition(".")
        config = self.configs.get(component, self.configs.get(""))
        if config is None:
            return None
        value = _pattern(config.get("alpha_pattern"), inside, config.get("lora_alpha"))
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            return None
        return float(value) * (sqrt(rank) if config.get("use_rslora") is True else 1.0)


def _pattern(patterns: Any, inside: str, default: Any) -> Any:
    """The value of the first pattern that names the module or the end of its path.

    PEFT takes patterns for regular expressions; a stranger's expression is not run here, only the
    literal ones that its writers make are understood.
    """
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        if not isinstance(key, str) or not _LITERAL.fullmatch(key):
            continue
        name = key.removesuffix("$").replace("\\.", ".")
        for form in (inside, inside.removeprefix("text_model.")):
            if name.removeprefix("^") == form or (not name.startswith("^") and form.endswith(f".{name}")):
                return value
    return default


def stated(metadata: Mapping[str, str], path: Path | None = None) -> Stated:
    """What the header says, or else the ``adapter_config.json`` that PEFT puts beside its weights."""
    table = _json(metadata.get(HEADER_KEY, ""))
    if not table and path is not None:
        table = _beside(path)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        component, dot, name = key.partition(".")
        if dot:
            configs.setdefault(component, {})[name] = value
        else:
            configs.setdefault("", {})[key] = value
    return Stated(configs)


def _beside(path: Path) -> dict[str, Any]:
    file = path.with_name("adapter_config.json")
    try:
        if path.name != "adapter_model.safetensors" or file.stat().st_size > _CONFIG_BYTES:
            return {}
        return _json(file.read_text())
    except (OSError, ValueError):
        return {}


def _json(text: str) -> dict[str, Any]:
    try:
        table = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
