"""``custom_pipeline`` for Stable Diffusion XL: its call takes ``adapters=``, ``program=`` and ``masks=``."""

from __future__ import annotations

import diffusers

from loracomp.plugin.composing import Composing


class StableDiffusionXLPipeline(Composing, diffusers.StableDiffusionXLPipeline):
    """:class:`diffusers.StableDiffusionXLPipeline` with LoRAs per call; saved as what it extends."""
