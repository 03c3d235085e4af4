"""``custom_pipeline`` for Stable Diffusion 3: its call takes ``adapters=``, ``program=`` and ``masks=``."""

from __future__ import annotations

import diffusers

from loracomp.plugin.composing import Composing


class StableDiffusion3Pipeline(Composing, diffusers.StableDiffusion3Pipeline):
    """:class:`diffusers.StableDiffusion3Pipeline` with LoRAs per call; saved as what it extends."""
