"""How much the mark and the picture count while a decoder is marked (DLWS, arXiv:2410.20202 v2, §3.5).

Two defects of the algorithm as it is described are mended. Its wanted bit accuracy steps from 0.90 to 0.98
to 1.06, which nothing reaches, so that the mark's weight then grows for ever: it stops at 0.995 here. Its
weights only grow, which under Adam changes nothing but their ratio, and it decides on single batches of four:
here weights have a sum of 1, and running means decide.
"""

from __future__ import annotations

from dataclasses import dataclass

HIGHEST_ACCURACY = 0.995


@dataclass
class Balance:
    """The scheduler's state, which persists over steps.

    Attributes:
        picture: Weight λᵢ of the picture.
        mark: Weight λ_w of the mark.
        psnr: Wanted PSNR ρ in dB.
        accuracy: Wanted bit accuracy μ.
        psnr_step: Rise of ρ.
        accuracy_step: Rise of μ.
        gain: Growth γ of the weights before they are brought back to their sum of 1; the 0.30 of the paper
            is about sums that grow for ever, and would throw the balance over within three steps here.
        patience: Steps in a row after which a target rises.
        keep: Share of the running means that each step leaves.
        highest_psnr: Where ρ stops.
    """

    picture: float = 1.0
    mark: float = 0.0
    psnr: float = 30.0
    accuracy: float = 0.90
    psnr_step: float = 2.5
    accuracy_step: float = 0.08
    gain: float = 0.05
    patience: int = 5
    keep: float = 0.8
    highest_psnr: float = 40.0
    good_pictures: int = 0
    good_marks: int = 0
    mean_psnr: float | None = None
    mean_accuracy: float | None = None

    def step(self, psnr: float, accuracy: float) -> tuple[float, float]:
        """The weights (picture, mark), of sum 1, after a batch of this PSNR in dB and bit accuracy."""
        self.mean_psnr = self._mean(self.mean_psnr, psnr)
        self.mean_accuracy = self._mean(self.mean_accuracy, accuracy)
        if self.mean_accuracy < self.accuracy:
            self.mark += 2 * self.gain
            self.good_marks = 0
        else:
            self.good_marks += 1
            if self.mean_psnr < self.psnr:
                self.picture += self.gain
                self.good_pictures = 0
            else:
                self.good_pictures += 1
        if self.good_marks == self.patience:
            self.accuracy = min(HIGHEST_ACCURACY, self.accuracy + self.accuracy_step)
            self.good_marks = 0
        if self.good_pictures == self.patience:
            self.psnr = min(self.highest_psnr, self.psnr + self.psnr_step)
            self.good_pictures = 0
        total = self.picture + self.mark
        self.picture, self.mark = self.picture / total, self.mark / total
        return self.picture, self.mark

    def _mean(self, before: float | None, value: float) -> float:
        return value if before is None else self.keep * before + (1 - self.keep) * value
