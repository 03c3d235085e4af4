"""Composing adapters: gate programs, the stacked runtime layer, merges.

``program``, ``curves``, ``plan``, ``blocks``, ``branches`` and ``methods`` are pure data and mathematics;
``stacked``, ``gates`` and ``hook`` are the runtime.
"""

from loracomp.fusion.curves import Curve
from loracomp.fusion.methods import composite, merge, switch
from loracomp.fusion.plan import CachePlan
from loracomp.fusion.program import METHODS, GateTable, Profile, Program

__all__ = [
    "METHODS",
    "CachePlan",
    "Curve",
    "GateTable",
    "Profile",
    "Program",
    "composite",
    "merge",
    "switch",
]
