"""Composing adapters: gate programs, the stacked runtime layer, merges.

``program``, ``curves``, ``plan``, ``blocks``, ``branches``, ``methods`` and the methods with files of
their own (``cmlora``, ``gated``, ``lion``, ``prompt_aware``, ``roles``) are pure data and mathematics;
``stacked``, ``gates`` and ``hook`` are the runtime.
"""

from loracomp.fusion import cmlora, gated, lion, prompt_aware, roles  # noqa: F401
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
