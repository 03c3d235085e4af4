"""LoRA files: reading any dialect into an :class:`~loracomp.adapter.Adapter`, writing, examining."""

from __future__ import annotations

from loracomp.formats.algebra import ALGEBRAS
from loracomp.formats.checks import CHECKS, Finding
from loracomp.formats.convert import Conversion, LayerError, convert
from loracomp.formats.dialects import DIALECTS
from loracomp.formats.doctor import Checkup, Diagnosis, diagnose, doctor
from loracomp.formats.gate import Limits
from loracomp.formats.hashing import hashes
from loracomp.formats.reading import load
from loracomp.formats.report import Report, inspect
from loracomp.formats.thumbnail import thumbnail
from loracomp.formats.weights import base_layers, folder_weights, shipped_folder
from loracomp.formats.writing import save

__all__ = [
    "ALGEBRAS",
    "CHECKS",
    "DIALECTS",
    "Checkup",
    "Conversion",
    "Diagnosis",
    "Finding",
    "LayerError",
    "Limits",
    "Report",
    "base_layers",
    "convert",
    "diagnose",
    "doctor",
    "folder_weights",
    "hashes",
    "inspect",
    "load",
    "save",
    "shipped_folder",
    "thumbnail",
]
