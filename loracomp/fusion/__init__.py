"""Composing adapters: gate programs, the stacked runtime layer, merges.

``program`` and ``methods`` are pure data and mathematics; ``stacked`` and ``hook`` are the runtime.
"""

from loracomp.fusion.methods import composite, merge, switch
from loracomp.fusion.program import METHODS, GateTable, Program

__all__ = ["METHODS", "GateTable", "Program", "composite", "merge", "switch"]
