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
    places = [place for place in bank.weights if place in layers and layers[place].rank]
    factors = {place: layers[place].matrices(torch.float32) for place in places}
    blocks = text_blocks({place: (up[None], down[None]) for place, (up, down) in factors.items()}, bank)
    return blocks[0] if blocks else None


def text_blocks(layers: Mapping[int, tuple[Tensor, Tensor]], bank: ProbeBank) -> list[TextBlock]:
    """The text probes of ``n`` adapters that change the same layers with the same ranks.

    Args:
        layers: By position, up (n, rows, r) times the scale and down (n, r, d), float32; layers that read no
            text are passed over.
        bank: The base's probes.

    Returns:
        One each; nothing where no layer reads the text.
    """
    sites = site_table(bank.base).sites
    tracks = []
    for end in TRACKS:
        places = [place for place in bank.weights if place in layers and sites[place].path.endswith(end)]
        tracks.append(_track(places, layers, bank))
    count = next((len(track[0]) for track in tracks if track), 0)
    filled = [track or _silence(bank, count) for track in tracks]
    parts = [torch.stack(part, 1) for part in zip(*filled, strict=True)]
    return [TextBlock(*(part[row] for part in parts)) for row in range(count)]


_Track = tuple[Tensor, Tensor, Tensor, Tensor]


def _silence(bank: ProbeBank, count: int) -> _Track:
    zeros = bank.common.new_zeros(count, DIRECTIONS, bank.width)
    return bank.common.new_zeros(count, len(bank.states)), zeros, zeros[:, 0], zeros


def _track(places: list[int], layers: Mapping[int, tuple[Tensor, Tensor]], bank: ProbeBank) -> _Track | None:
    if not places:
        return None
    norms = bank.norms[places].to(bank.common)
    order = {place: row for row, place in enumerate(bank.weights)}
    roots = [_square_root(layers[place][0]) @ layers[place][1] for place in places]
    backs = [
        (torch.tensordot(layers[place][0], bank.weights[place], ([1], [0])) / norm**2, layers[place][1])
        for place, norm in zip(places, norms, strict=True)
    ]
    answers = (torch.cat(roots, 1) @ bank.states.T).square().split([root.shape[1] for root in roots], 1)
    moved = torch.stack([part.sum(1) for part in answers]).sqrt()
    still = bank.answers[[order[place] for place in places]].clamp_min(_TINY)
    rows = [root / norm for root, norm in zip(roots, norms, strict=True)]
    listen = _leading(torch.cat(rows, 1))
    unit = listen / listen.norm(dim=2, keepdim=True).clamp_min(_TINY)
    heard = torch.cat([bank.common.expand(len(unit), 1, -1), unit], 1)
    said = torch.zeros_like(heard)
    for back, down in backs:
        said += (heard @ down.mT) @ back
    said = said @ bank.inverse
    return (moved / still[:, None]).median(0).values, listen, said[:, 0], said[:, 1:]


def _square_root(up: Tensor) -> Tensor:
    """R (n, r, r) with RᵀR = upᵀ up, by QR so that no digits are lost in skewed gauges."""
    if up.shape[1] < up.shape[2]:
        return up
    return torch.linalg.qr(up, mode="r").R


def _leading(rows: Tensor) -> Tensor:
    """The 8 leading right singular vectors of rows (n, m, d) times their values, by subspace iteration.

    The start is fixed, so equal updates give equal results in every gauge; the largest entry of each
    vector is positive.
    """
    count, _, width = rows.shape
    source = torch.Generator().manual_seed(width)
    start = torch.randn(width, min(_OVERSAMPLED, width), generator=source).to(rows)
    basis = start.expand(count, -1, -1)
    for _ in range(_STEPS):
        basis = torch.linalg.qr(rows.mT @ (rows @ basis)).Q
    _, values, turned = torch.linalg.svd(rows @ basis, full_matrices=False)
    vectors = turned @ basis.mT
    peaks = vectors.gather(2, vectors.abs().argmax(2, keepdim=True))
    found = vectors * values[..., None] * torch.where(peaks < 0, -1.0, 1.0)
    out = rows.new_zeros(count, DIRECTIONS, width)
    kept = min(DIRECTIONS, found.shape[1])
    out[:, :kept] = found[:, :kept]
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
