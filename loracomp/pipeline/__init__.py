"""The plug-in for diffusers: live adapters on any text-to-image pipeline.

attachment = loracomp.attach(pipe, [cat, watercolor], "switch")
image = pipe("a cat, watercolor").images[0]
loracomp.detach(pipe)
"""

from loracomp.pipeline.attachment import Attachment, Capacity, attach, detach
from loracomp.pipeline.composing import StepCallback, compose
from loracomp.pipeline.layers import (
    base_of,
    denoiser_of,
    layers_of,
    own_layers,
    weight_shape,
    weights_of,
)

__all__ = [
    "Attachment",
    "Capacity",
    "StepCallback",
    "attach",
    "base_of",
    "compose",
    "denoiser_of",
    "detach",
    "layers_of",
    "own_layers",
    "weight_shape",
    "weights_of",
]
