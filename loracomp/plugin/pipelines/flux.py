"""``custom_pipeline`` for FLUX.1: its call takes ``adapters=``, ``program=`` and ``masks=``."""

from __future__ import annotations

import diffusers

from loracomp.plugin.composing import Composing


class FluxPipeline(Composing, diffusers.FluxPipeline):
    """:class:`diffusers.FluxPipeline` with LoRAs per call; saved as what it extends."""
