"""LoRA files: reading any dialect into an :class:`~loracomp.adapter.Adapter`, writing, inspecting."""

from __future__ import annotations

from loracomp.formats.dialects import DIALECTS
from loracomp.formats.gate import Limits
from loracomp.formats.hashing import hashes
from loracomp.formats.reading import load
from loracomp.formats.report import Report, inspect
from loracomp.formats.writing import save

__all__ = ["DIALECTS", "Limits", "Report", "hashes", "inspect", "load", "save"]
