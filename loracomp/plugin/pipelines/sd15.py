"""``custom_pipeline`` for Stable Diffusion 1.5: its call takes ``adapters=``, ``program=`` and ``masks=``."""

from __future__ import annotations

import diffusers

from loracomp.plugin.composing import Composing


class StableDiffusionPipeline(Composing, diffusers.StableDiffusionPipeline):
    """:class:`diffusers.StableDiffusionPipeline` with LoRAs per call; saved as what it extends."""
