"""Denoisers of public sizes with random weights, their inputs and adapters: what benchmarks.engine times."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from loracomp.adapter import Adapter
from loracomp.bases import UNET_TARGETS, get_base
from loracomp.lowrank import LowRank
from loracomp.training.tables import BUILDERS, SDXL_UNET

TINY_UNET = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2),
    "attention_head_dim": 8, "cross_attention_dim": 64, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}  # fmt: skip
TINY_FLUX = {
    "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8), "in_channels": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A denoiser as data.

    Attributes:
        component: ``unet`` or ``transformer``.
        build: Makes the module, on the device and in the dtype that are the default then.
        inputs: Arguments of a call, from the number of images, the side of the latent and the device.
        target: Whether adapters change a layer, by its path in the module.
        rank: Rank of the adapters.
        guided: Whether a batch holds both halves of guidance.
    """

    component: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int, dict[str, Any]], dict[str, Any]]
    target: Callable[[str], bool]
    rank: int
    guided: bool


def _unet(**config: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**config)


def _flux(**config: Any) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True, **config)


def _unet_inputs(channels: int, tokens: int, width: int, pooled: int = 0) -> Callable[..., dict[str, Any]]:
    def make(images: int, side: int, kind: dict[str, Any]) -> dict[str, Any]:
        rows = 2 * images
        found: dict[str, Any] = {
            "sample": torch.randn(rows, channels, side, side, **kind),
            "encoder_hidden_states": torch.randn(rows, tokens, width, **kind),
        }
        if pooled:
            size = torch.tensor([side * 8.0, side * 8.0, 0, 0, side * 8.0, side * 8.0], **kind)
            texts = torch.randn(rows, pooled, **kind)
            found["added_cond_kwargs"] = {"text_embeds": texts, "time_ids": size.repeat(rows, 1)}
        return found

    return make


def _flux_inputs(channels: int, tokens: int, width: int, pooled: int) -> Callable[..., dict[str, Any]]:
    def make(images: int, side: int, kind: dict[str, Any]) -> dict[str, Any]:
        half = side // 2
        rows, columns = torch.meshgrid(torch.arange(half), torch.arange(half), indexing="ij")
        places = torch.stack([torch.zeros(half, half), rows, columns], dim=-1).reshape(-1, 3)
        return {
            "hidden_states": torch.randn(images, half * half, channels, **kind),
            "encoder_hidden_states": torch.randn(images, tokens, width, **kind),
            "pooled_projections": torch.randn(images, pooled, **kind),
            "img_ids": places.to(**kind),
            "txt_ids": torch.zeros(tokens, 3, **kind),
            "guidance": torch.full((images,), 3.5, **kind),
        }

    return make


def _in_unet(path: str) -> bool:
    return ".attentions." in path and path.endswith(UNET_TARGETS)


def _in_blocks(path: str) -> bool:
    return path.startswith(("transformer_blocks.", "single_transformer_blocks."))


def _in_glyph(path: str) -> bool:
    return path.endswith(get_base("glyph").targets)


MODELS = {
    "sdxl": Model("unet", lambda: _unet(**SDXL_UNET), _unet_inputs(4, 77, 2048, 1280), _in_unet, 32, True),
    "flux": Model("transformer", _flux, _flux_inputs(64, 512, 4096, 768), _in_blocks, 32, False),
    "glyph": Model(
        "unet", lambda: BUILDERS["glyph"]()["unet"], _unet_inputs(12, 32, 256), _in_glyph, 8, True
    ),
}
TINY = {
    "sdxl": Model("unet", lambda: _unet(**TINY_UNET), _unet_inputs(4, 8, 64, 32), _in_unet, 4, True),
    "flux": Model(
        "transformer", lambda: _flux(**TINY_FLUX), _flux_inputs(16, 8, 32, 32), _in_blocks, 4, False
    ),
    "glyph": Model("unet", lambda: _unet(**TINY_UNET), _unet_inputs(4, 8, 64, 32), _in_unet, 4, True),
}


@dataclass(eq=False)
class Stage:
    """A denoiser with what ``attach`` asks of a pipeline, and arguments for its calls.

    Copies share all weights, so that contestants stand side by side in the memory of one model.
    """

    model: Model
    module: nn.Module
    scheduler: Any
    kind: dict[str, Any]
    place: Any = field(init=False)

    def __post_init__(self) -> None:
        parts = {self.model.component: self.module, "scheduler": self.scheduler}
        self.place = SimpleNamespace(**parts, do_classifier_free_guidance=self.model.guided)

    @classmethod
    def of(cls, model: Model, device: str, dtype: torch.dtype) -> Stage:
        """A model with random weights."""
        from diffusers import EulerDiscreteScheduler

        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                module = model.build().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        scheduler = EulerDiscreteScheduler()
        scheduler.set_timesteps(30, device=device)
        return cls(model, module, scheduler, {"device": device, "dtype": dtype})

    def twin(self) -> Stage:
        """Another module with the same weights, the same tensors."""
        shared: dict[int, Any] = {id(values): values for values in self.module.parameters()}
        shared |= {id(values): values for values in self.module.buffers()}
        return Stage(self.model, copy.deepcopy(self.module, shared), self.scheduler, self.kind)

    def arguments(self, images: int, side: int) -> dict[str, Any]:
        """Arguments of a call in the middle of a run."""
        torch.manual_seed(1)
        found = self.model.inputs(images, side, self.kind)
        time = self.scheduler.timesteps[10]
        return {
            **found,
            "timestep": time if self.model.guided else time.expand(images) / 1000,
            "return_dict": False,
        }

    def adapters(self, count: int) -> list[Adapter]:
        """Adapters with normal factors on all targets, in the model's dtype."""
        torch.manual_seed(2)
        targets = {
            path: module.weight
            for path, module in self.module.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) and self.model.target(path)
        }
        return [
            Adapter(
                {f"{self.model.component}.{path}": self._layer(weight) for path, weight in targets.items()},
                "benchmark",
                f"adapter{number}",
            )
            for number in range(count)
        ]

    def _layer(self, weight: torch.Tensor) -> LowRank:
        rank, tail = self.model.rank, (1,) * (weight.ndim - 2)
        down = torch.randn(rank, *weight.shape[1:], **self.kind) / weight[0].numel() ** 0.5
        return LowRank(down, torch.randn(weight.shape[0], rank, *tail, **self.kind) * 0.01)

    def load(self, adapters: list[Adapter]) -> list[str]:
        """Puts adapters into PEFT's layers, all active; gives their names."""
        import warnings

        from peft import LoraConfig

        module: Any = self.module
        names = [adapter.name for adapter in adapters]
        paths = [path.partition(".")[2] for path in adapters[0].layers]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for adapter in adapters:
                rank = self.model.rank
                module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=paths), adapter.name)
                for path, layer in adapter.layers.items():
                    site = module.get_submodule(path.partition(".")[2])
                    site.lora_A[adapter.name].to(**self.kind).weight.data.copy_(layer.down)
                    site.lora_B[adapter.name].to(**self.kind).weight.data.copy_(layer.up)
        module.set_adapters(names, [1.0] * len(names))
        module.requires_grad_(False).eval()
        return names
