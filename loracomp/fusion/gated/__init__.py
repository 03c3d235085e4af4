"""AutoLoRA's gate: how strongly each adapter speaks, decided per layer, token, channel and step."""

from loracomp.fusion.gated.form import Form
from loracomp.fusion.gated.method import gated, usable
from loracomp.fusion.gated.weights import GateWeights, open_gate

__all__ = ["Form", "GateWeights", "gated", "open_gate", "usable"]
