"""A marking run: the plain session with another loss, another beginning and a signed end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from loracomp import formats
from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank, concatenate
from loracomp.training import checkpoint
from loracomp.training.cache import default_cache, encode
from loracomp.training.inject import Injected, check_learned, inject
from loracomp.training.loop import Loop
from loracomp.training.objective import Objective
from loracomp.training.order import generator_for
from loracomp.training.result import Trained
from loracomp.training.session import Session
from loracomp.training.watermark.codec_loss import Latents
from loracomp.training.watermark.dial import Dial, adopt, shadow_layers
from loracomp.training.watermark.objective import Keyed, Mapped, Marked
from loracomp.training.watermark.settings import MarkSettings
from loracomp.training.watermark.shift import mapper, modulation
from loracomp.watermark.codec import Codec
from loracomp.watermark.gauge import gauged
from loracomp.watermark.keys import Key
from loracomp.watermark.manifest import sign_file

EXPANDED = ("conv1", "conv2")
"""Targets beyond attention and feed-forward: convolutions of residual blocks see every scale."""
BAKED = 1.03
"""Factor on AquaLoRA's layers when a message is baked into them (its create_wm_lora.py)."""
MAPPER = "mapper.embeddings"


@dataclass(frozen=True, eq=False)
class Marking:
    """What a marking run is given beyond a plain one.

    Attributes:
        key: The key.
        codec: Of the same base.
        settings: How.
        twin: The unmarked adapter; None for AuthenLoRA, which learns the style itself.
        shadows: Other adapters that may be added while training.
        priors: File names of the data's pictures of the prior.
    """

    key: Key
    codec: Codec
    settings: MarkSettings
    twin: Adapter | None = None
    shadows: tuple[Adapter, ...] = ()
    priors: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class WithMapper(Injected):
    """Injected layers, and the mapper that trains with them."""

    embeddings: nn.Parameter = field(kw_only=True)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """See :attr:`Injected.tensors`; the mapper among them."""
        return {**super().tensors, MAPPER: self.embeddings}


class MarkSession(Session):
    """A session whose file carries a mark; see :class:`Session`.

    Args:
        marking: The mark.
    """

    def __init__(self, *args: Any, marking: Marking) -> None:
        super().__init__(*args)
        self.marking = marking
        self.config = self.config.model_copy(update={"targets": self._targets()})
        self.begun = replace(self.begun, config=self.config.dump())
        self._prepared: Marked | None = None

    def _targets(self) -> tuple[str, ...]:
        """The config's, the twin's own layers, and convolutions of residual blocks."""
        twin = self.marking.twin
        own = [p.partition(".")[2] for p in twin.layers if p.startswith("unet.")] if twin else []
        wide = EXPANDED if self.row.denoiser == "unet" and self.marking.settings.method != "aqualora" else ()
        return tuple(dict.fromkeys((*self.config.targets, *wide, *own)))

    def _objective(self) -> Objective:
        mark, config = self.marking, self.config
        encoded = encode(
            self.pipe, self.data, self.captions, resolution=self.resolution,
            variants=2 if config.flip else 1, with_text=True, cache=default_cache(),
        )  # fmt: skip
        mark.codec.to(self.pipe.device)
        common: dict[str, Any] = {"codec": mark.codec, "settings": mark.settings, "seed": config.seed}
        given = (self.pipe, encoded, config.min_snr_gamma, self.autocast, self.resolution)
        if mark.settings.method == "keyed":
            latents = Latents(self.pipe.vae) if mark.settings.detect else None
            self._prepared = Keyed(
                *given, **common, key=mark.key, latents_of=latents, shadows=len(mark.shadows)
            )
        else:
            priors = torch.tensor([p.path.name in mark.priors for p in self.data.pictures])
            alone = mark.settings.method == "aqualora"
            self._prepared = Mapped(*given, **common, priors=None if alone else priors)
        return self._prepared

    def _inject(self) -> Injected:
        mark, config = self.marking, self.config
        injected = inject(
            self.pipe, rank=config.rank, alpha=float(config.rank), targets=config.targets, text_encoders=(),
            seed=config.seed,
        )  # fmt: skip
        objective = self._prepared
        if isinstance(objective, Keyed):
            shadows = [shadow.to(self.pipe.device) for shadow in mark.shadows]
            objective.dial = Dial(injected, shadow_layers(shadows, tuple(injected.layers)))
            objective.dial.weights = (0.0,) * len(shadows)
            objective.factors = adopt(injected, mark.twin or Adapter({}, self.origin.name))
        elif isinstance(objective, Mapped):
            source = generator_for(config.seed, "mapper")
            table = nn.Parameter(mapper(mark.codec.shape.bits, config.rank, source).to(self.pipe.device))
            injected = WithMapper(injected.models, injected.layers, injected.alpha, embeddings=table)
            objective.dial, objective.embeddings = Dial(injected), table
            objective.silent = injected.silent
        if config.gradient_checkpointing:
            self._denoiser.enable_gradient_checkpointing()
        return injected

    def _finish(self, loop: Loop, injected: Injected) -> Trained:
        mark, loss = self.marking, sum(loop.losses) / len(loop.losses)
        if self._prepared is not None and self._prepared.dial is not None:
            self._prepared.dial.remove()
        facts = {"started": self.begun.started, "seconds": loop.seconds, "loss": loss}
        updates = gauged(Adapter(self._updates(injected), self.origin.name), mark.key).layers
        trained = self.origin.write(self.out, updates, self.config, self.data, **facts)
        self._keep_header()
        sign_file(
            self.out, mark.key, method=mark.settings.method, settings=mark.settings.dump(),
            extractor=mark.codec.digest,
        )  # fmt: skip
        checkpoint.discard(self.out)
        table = None if self.origin.name == self.row.name else self.origin.shapes
        trained = replace(trained, adapter=formats.load(self.out, modules=table))
        return replace(trained, grid=self._sample(injected)) if self.config.sample_count else trained

    def _updates(self, injected: Injected) -> dict[str, LowRank]:
        """The final updates: messages baked in, the twin added where the mark was learned alone."""
        values = {name: tensor.detach().cpu().clone() for name, tensor in injected.tensors.items()}
        check_learned({name: value for name, value in values.items() if name != MAPPER})
        scale = torch.ones(self.config.rank)
        if MAPPER in values:
            scale = modulation(self.marking.key.message.float()[None], values[MAPPER])[0]
        alone = self.marking.settings.method == "aqualora"
        factor = BAKED if alone else 1.0
        made = {}
        for path in injected.layers:
            down = values[f"{path}.down"]
            down = down * (factor * scale).reshape(-1, *(1,) * (down.ndim - 1))
            made[path] = LowRank(down, values[f"{path}.up"], injected.alpha)
        twin = self.marking.twin
        if twin is None:
            return made
        kept = {path: layer for path, layer in twin.layers.items() if path not in made}
        if alone:
            made = {
                p: concatenate([layer, twin.layers[p]]) if p in twin.layers else layer
                for p, layer in made.items()
            }
        return {**made, **{path: layer.folded() for path, layer in kept.items()}}

    def _keep_header(self) -> None:
        """What the twin's file said of itself and this run cannot know: licence, author, training data."""
        from loracomp.watermark.header import with_strings

        if self.marking.twin is None:
            return
        wanted = (
            "modelspec.license",
            "modelspec.author",
            "modelspec.tags",
            "loracomp.data",
            "loracomp.lineage",
        )
        theirs = self.marking.twin.metadata
        if kept := {name: theirs[name] for name in wanted if name in theirs}:
            with_strings(self.out, kept)


def fitting_shadows(candidates: Sequence[Adapter], twin: Adapter) -> tuple[Adapter, ...]:
    """Those that may be added: of the same base, no accelerators, not the twin itself."""
    return tuple(
        other
        for other in candidates
        if other.base == twin.base and other.accelerator is None and other.digest != twin.digest
    )
