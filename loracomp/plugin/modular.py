"""A block for diffusers' modular pipelines: a call's adapters, live from the first block on."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from loracomp.errors import UsageError
from loracomp.pipeline import Attachment, attach, detach
from loracomp.plugin.composing import opened


class AdaptersStep(ModularPipelineBlocks):
    """Attaches the adapters of this call and takes off those of the call before; goes in front.

    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.insert("adapters", AdaptersStep(), 0)

    Modular pipelines encode a prompt once, so where an adapter changes a text encoder all branches and halves
    have to read it alike; what does not is refused.
    """

    model_name = None

    @property
    def description(self) -> str:
        """For the pipeline's own documentation."""
        return "Attaches LoRAs for this call: names, files or adapters, and the program that composes them."

    @property
    def inputs(self) -> list[InputParam]:
        """What the pipeline's call takes in addition."""
        return [
            InputParam("adapters", default=(), description="Names, files or adapters; none draws without."),
            InputParam("program", default="merge", description="A method's name or a gate program."),
            InputParam("masks", default=(), description="Where each adapter acts, or nothing."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Attaches; raises what :func:`loracomp.attach` raises."""
        asked = self.get_block_state(state)
        detach(components)
        if asked.adapters:
            ready = opened(components, asked.adapters, asked.program)
            attachment = attach(components, *ready, masks=asked.masks)
            if not _reads_alike(attachment):
                detach(components)
                raise UsageError(
                    "adapters for text encoders under a program that reads the prompt in several ways; "
                    "a modular pipeline encodes it once: take method merge, or a classic pipeline"
                )
        return components, state


def _reads_alike(attachment: Attachment) -> bool:
    """Whether every branch and half of every image has the same strengths in the text encoders."""
    if not any(path.startswith("text_encoder") for a in attachment.adapters for path in a.layers):
        return True
    readings = torch.cat(
        [
            program.text_weights(unconditional=half)
            for program in attachment.hook.programs
            for half in (False, True)
        ]
    )
    return bool((readings == readings[0]).all())
