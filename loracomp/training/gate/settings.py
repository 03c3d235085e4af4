"""How a gate is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from loracomp.errors import UsageError
from loracomp.fusion.gated import Form


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        form: The gate's terms.
        steps: Optimizer steps at most.
        minutes: Minutes at most, rendering not counted; the learning rate follows whichever ends first.
        batch: Samples times adapters in a step; samples of a step all have the same number of adapters.
        lr: Peak learning rate of AdamW.
        counts: Numbers of adapters N that are sampled.
        solo: Share of samples that ask for one of the adapters alone, as that adapter draws it.
        hinge: Weight of the published hinge max(0, margin - error) on another adapter's words.
        margin: Its margin, on the mean squared error of the prediction.
        empty: Share of empty prompts.
        average: Decay of the running average of the gate that is saved.
        scenes: Pictures of several concepts to render.
        every: Steps between measurements on unseen concepts.
        measured: Samples times adapters of each measurement and N.
        seed: Decides everything that is drawn.
    """

    form: Form = field(default_factory=Form.ours)
    steps: int = 20_000
    minutes: float = 15.0
    batch: int = 384
    lr: float = 3e-3
    counts: tuple[int, ...] = (1, 2, 3, 4, 5)
    solo: float = 0.25
    hinge: float = 0.1
    margin: float = 0.5
    empty: float = 0.1
    average: float = 0.998
    scenes: int = 3000
    every: int = 500
    measured: int = 384
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "steps": (1, 10**7), "minutes": (0.01, 10**4), "batch": (1, 10**5), "lr": (1e-8, 1.0),
            "solo": (0, 1), "hinge": (0, 100), "margin": (0, 100), "empty": (0, 1), "average": (0, 1),
            "scenes": (1, 10**6), "every": (1, 10**7), "measured": (1, 10**6),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} {getattr(self, name)} is outside {low} … {high}")
        if not self.counts or not all(1 <= count <= 16 for count in self.counts):
            raise UsageError(f"counts {self.counts}: numbers of adapters from 1 to 16")
        if self.form.joint:
            raise UsageError("joint statistics are for gates trained on fused layers; train without them")
