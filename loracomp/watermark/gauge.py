"""A gauge of its own for every copy: the same update, other factors.

(up Qᵀ, Q down) is the same ΔW for every orthogonal Q. Copies in different gauges cannot be averaged factor by
factor; averaging their ΔW still works, so this hinders careless collusion only.
"""

from __future__ import annotations

from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank
from loracomp.watermark.keys import Key
from loracomp.watermark.stream import frame


def gauged(adapter: Adapter, key: Key) -> Adapter:
    """The adapter with every layer in the gauge that the key decides; ΔW is the same up to rounding."""

    def turn(path: str, layer: LowRank) -> LowRank:
        if layer.rank < 2:
            return layer
        matrix = frame(key.gauge_seed, path, layer.rank, layer.rank)
        down = (matrix @ layer.down.flatten(1).double()).reshape(layer.down.shape)
        up = (layer.up.flatten(1).double() @ matrix.T).reshape(layer.up.shape)
        return LowRank(down.to(layer.down.dtype), up.to(layer.up.dtype), layer.alpha)

    layers = {path: turn(path, layer) for path, layer in adapter.layers.items()}
    return Adapter(layers, adapter.base, adapter.name, adapter.metadata)
