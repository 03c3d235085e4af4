"""What an adapter hears and what it says, in the space of its base's text encoder, without any training.

The layers that read the text share one input space. For such layers l with weight W_l and update ΔW_l,
and λ_l = 1/‖W_l‖²:

* ``energy`` of a prompt p: median over l of ‖ΔW_l h(p)‖ / ‖W_l h(p)‖, which prompts move the adapter;
* ``listen``: the leading directions f_i of Σ λ_l ΔW_lᵀ ΔW_l, so that Σ_i (f_i · h)² is the response to any
  text h that comes later;
* ``pull``: M Σ λ_l W_lᵀ ΔW_l h for the common state, the change of the text that would best imitate the
  adapter through the unchanged base (least squares, M = (Σ λ_l W_lᵀ W_l + μ)⁻¹);
* ``echo``: the same for the directions f_i.

Keys and values are kept apart: where attention goes, and what it brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loracomp.lowrank import LowRank
from loracomp.retrieval.bank import ProbeBank
from loracomp.retrieval.sites import site_table

DIRECTIONS = 8
_OVERSAMPLED = 16
_STEPS = 4
_TINY = 1e-20
TRACKS = (".to_v", ".to_k")


@dataclass(frozen=True, eq=False)
class TextBlock:
    """An adapter's answers to the text probes; tracks are values and keys, ``d`` the text width.

    Attributes:
        energy: Shape (2, prompts).
        listen: Shape (2, 8, d), scaled by the response, strongest first.
        pull: Shape (2, d).
        echo: Shape (2, 8, d), answers to the directions of ``listen`` at unit length.
    """

    energy: Tensor
    listen: Tensor
    pull: Tensor
    echo: Tensor


def text_block(layers: Mapping[int, LowRank], bank: ProbeBank) -> TextBlock | None:
    """The text probes of an adapter's layers, by position in the site table; None if none reads the text."""
    table = site_table(bank.base)
    tracks = []
    for end in TRACKS:
        places = [
            p for p in bank.weights if p in layers and layers[p].rank and table.sites[p].path.endswith(end)
        ]
        tracks.append(_track(places, layers, bank))
    if all(track is None for track in tracks):
        return None
    filled = [track or _silence(bank) for track in tracks]
    energy, listen, pull, echo = (torch.stack(part) for part in zip(*filled, strict=True))
    return TextBlock(energy, listen, pull, echo)


def _silence(bank: ProbeBank) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    zeros = bank.common.new_zeros(DIRECTIONS, bank.width)
    return bank.common.new_zeros(len(bank.states)), zeros, zeros[0], zeros


def _track(
    places: list[int], layers: Mapping[int, LowRank], bank: ProbeBank
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    if not places:
        return None
    rows, backs, energies = [], [], []
    order = {place: row for row, place in enumerate(bank.weights)}
    for place in places:
        up, down = layers[place].matrices(torch.float32)
        weight, share = bank.weights[place], 1 / float(bank.norms[place]) ** 2
        root = _square_root(up)
        rows.append(root @ down * share**0.5)
        backs.append((weight.T @ up * share, down))
        answered = (rows[-1] @ bank.states.T).norm(dim=0) / share**0.5
        energies.append(answered / bank.answers[order[place]].clamp_min(_TINY))
    listen = _leading(torch.cat(rows))
    unit = listen / listen.norm(dim=1, keepdim=True).clamp_min(_TINY)
    heard = torch.cat([bank.common[None], unit])
    said = torch.zeros_like(heard)
    for back, down in backs:
        said += (heard @ down.T) @ back.T
    said = said @ bank.inverse
    return torch.stack(energies).median(0).values, listen, said[0], said[1:]


def _square_root(up: Tensor) -> Tensor:
    """R (r, r) with RᵀR = upᵀ up, by QR so that no digits are lost in skewed gauges."""
    if up.shape[0] < up.shape[1]:
        return up
    return torch.linalg.qr(up, mode="r").R


def _leading(rows: Tensor) -> Tensor:
    """The 8 leading right singular vectors of rows (n, d) times their values, by subspace iteration.

    The start is fixed, so equal updates give equal results in every gauge; the largest entry of each
    vector is positive.
    """
    width = rows.shape[1]
    source = torch.Generator().manual_seed(width)
    basis = torch.randn(width, min(_OVERSAMPLED, width), generator=source).to(rows)
    for _ in range(_STEPS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
    _, values, turned = torch.linalg.svd(rows @ basis, full_matrices=False)
    vectors = turned @ basis.T
    peaks = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    found = vectors * values[:, None] * torch.where(peaks < 0, -1.0, 1.0)
    out = rows.new_zeros(DIRECTIONS, width)
    count = min(DIRECTIONS, len(found))
    out[:count] = found[:count]
    return out


def heard(listen: Tensor, states: Tensor) -> Tensor:
    """Squared responses of adapters to texts.

    Args:
        listen: Shape (n, directions, d).
        states: Centered text states, shape (q, d).

    Returns:
        Shape (q, n).
    """
    count, directions, width = listen.shape
    answers = states @ listen.reshape(count * directions, width).T
    return answers.unflatten(1, (count, directions)).square().sum(2)
