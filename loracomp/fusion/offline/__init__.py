"""Merging adapters into one file, and folding them into a base model's weights.

``MERGES`` holds the methods, each a function of one layer; ``merge`` makes an adapter, ``merge_files`` a
file, ``fold`` and ``fold_checkpoint`` change weights.
"""

from __future__ import annotations

from loracomp.fusion.offline import lego, lion, pruning, sums  # noqa: F401 — they register their methods
from loracomp.fusion.offline.checkpoint import fold_checkpoint
from loracomp.fusion.offline.folding import Folding, fold, folded_weight
from loracomp.fusion.offline.merger import MERGES, Merger
from loracomp.fusion.offline.merging import carried_out, merge, merge_files, plan
from loracomp.fusion.offline.report import LayerReport, Report

__all__ = [
    "MERGES",
    "Folding",
    "LayerReport",
    "Merger",
    "Report",
    "carried_out",
    "fold",
    "fold_checkpoint",
    "folded_weight",
    "merge",
    "merge_files",
    "plan",
]
