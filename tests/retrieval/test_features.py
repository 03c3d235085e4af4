"""Features are functions of ΔW: gauge, dialect, dtype, order, alpha, padding and algebra leave them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from known_adapters import CROSS, adapter, alike, bank
from safetensors.torch import load_file, save_file

from loracomp.adapter import Adapter
from loracomp.errors import FormatError
from loracomp.formats import DIALECTS, save
from loracomp.lowrank import LowRank, canonical, cosine, inner, singular_values
from loracomp.retrieval.encoding import encode_adapter, encode_file
from loracomp.retrieval.features import features
from loracomp.retrieval.reduction import merged, reduce_layers
from loracomp.retrieval.sites import site_table
from loracomp.retrieval.spectra import squared_singular_values

TABLE = site_table("glyph")


def gauged(layer: LowRank, condition: float, seed: int, mixed: bool = True) -> LowRank:
    """The same update in a random gauge of a given condition number.

    Without ``mixed`` terms are scaled and not rotated: a rotated gauge makes the rounding of half
    precision itself as large as its condition number, whatever is computed afterwards.
    """
    source = torch.Generator().manual_seed(seed)
    r = layer.rank
    left, right = (
        torch.linalg.qr(torch.randn(r, r, generator=source, dtype=torch.float64)).Q for _ in range(2)
    )
    spread = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), r, dtype=torch.float64)
    gauge = left @ torch.diag(spread) @ right if mixed else torch.diag(spread)
    up = torch.einsum("orab,rs->osab", _four(layer.up).double(), gauge)
    down = torch.einsum("rs,siab->riab", torch.linalg.inv(gauge), _four(layer.down).double())
    return replace(
        layer, up=up.reshape(layer.up.shape).to(layer.up), down=down.reshape(layer.down.shape).to(layer.down)
    )


def _four(factor: torch.Tensor) -> torch.Tensor:
    return factor if factor.ndim == 4 else factor[..., None, None]


def padded(layer: LowRank) -> LowRank:
    """The same update with two more rank-one terms, one zero and one split in halves."""
    up = torch.cat([layer.up[:, :1] / 2, layer.up[:, :1] / 2, layer.up[:, 1:], layer.up[:, :1] * 0], 1)
    down = torch.cat([layer.down[:1], layer.down[:1], layer.down[1:], layer.down[:1]])
    return LowRank(down, up, layer.scale * down.shape[0])


CHANGES: dict[str, tuple[Callable[[LowRank], LowRank], float]] = {
    "gauge": (lambda layer: gauged(layer, 1e3, 1), 0.99999),
    "gauge in half precision": (
        lambda layer: gauged(layer, 1e3, 2, mixed=False).to(dtype=torch.float16).to(dtype=torch.float32),
        0.999,
    ),
    "half precision": (lambda layer: layer.to(dtype=torch.float16), 0.99999),
    "bfloat16": (lambda layer: layer.to(dtype=torch.bfloat16), 0.999),
    "folded alpha": (lambda layer: layer.folded(), 0.99999),
    "rank padding": (padded, 0.9999),
    "canonical form": (canonical, 0.99999),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_update_has_the_same_features(change: str) -> None:
    how, least = CHANGES[change]
    original = adapter(1)
    assert alike(encode_adapter(original, bank()), encode_adapter(original.map(how), bank())) >= least
    assert alike(encode_adapter(original, bank()), encode_adapter(adapter(2), bank())) < 0.9


def test_the_order_of_layers_does_not_matter() -> None:
    layers = {TABLE.index[path]: layer for path, layer in adapter(1).layers.items()}
    backwards = dict(reversed(layers.items()))
    assert alike(features(layers, TABLE, bank()), features(backwards, TABLE, bank())) > 0.9999999


@pytest.mark.parametrize("weight", [0.25, 4.0, -1.0])
def test_strength_moves_the_log_norm_alone(weight: float) -> None:
    plain, scaled = (encode_adapter(a, bank()) for a in (adapter(1), adapter(1).scaled(weight)))
    shift = torch.tensor(abs(weight)).log()
    assert torch.allclose(
        plain.spectra[plain.present, 0] + shift, scaled.spectra[scaled.present, 0], atol=1e-4
    )
    assert torch.allclose(plain.spectra[:, 3:], scaled.spectra[:, 3:], atol=1e-4)
    assert torch.allclose(plain.sketch * (1 if weight > 0 else -1), scaled.sketch, atol=1e-3)
    assert torch.allclose(plain.whole * weight, scaled.whole, rtol=1e-4, atol=1e-4)


def test_all_dialects_have_one_hash_and_the_same_features(tmp_path: Path) -> None:
    original = adapter(3, suffixes=("attn1.to_q", "attn1.to_k", "attn1.to_v", "ff.net.0.proj", *CROSS))
    rows = []
    for dialect in DIALECTS:
        if dialect != "comfyui":
            rows.append(encode_file(save(original, tmp_path / f"{dialect}.safetensors", dialect=dialect)))
    assert len(rows) >= 4
    assert len({row.facts.delta for row in rows}) == 1
    assert all(alike(rows[0].features, row.features) > 0.9999 for row in rows)


def test_products_are_read_like_their_expanded_forms(tmp_path: Path) -> None:
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    source = torch.Generator().manual_seed(0)
    halves = [torch.randn(96, 2, generator=source) for _ in range(2)] + [
        torch.randn(2, 96, generator=source) for _ in range(2)
    ]
    names = ("hada_w1_a", "hada_w2_a", "hada_w1_b", "hada_w2_b")
    save_file({f"{key}.{n}": v for n, v in zip(names, halves, strict=True)}, tmp_path / "loha.safetensors")
    dense = (halves[0] @ halves[2]) * (halves[1] @ halves[3])
    left, right = torch.randn(8, 6, generator=source), torch.randn(12, 16, generator=source)
    save_file({f"{key}.lokr_w1": left, f"{key}.lokr_w2": right}, tmp_path / "lokr.safetensors")
    for name, matrix in (("loha", dense), ("lokr", torch.kron(left, right))):
        u, s, vt = torch.linalg.svd(matrix.double())
        rank = int((s > 1e-6 * s[0]).sum())
        layer = LowRank((s[:rank, None] * vt[:rank]).float(), u[:, :rank].float())
        plain = encode_adapter(Adapter({path: layer}, "glyph"))
        assert alike(encode_file(tmp_path / f"{name}.safetensors").features, plain) >= 0.9999


def test_absent_and_zero_layers_are_masked_alike() -> None:
    whole = adapter(1)
    kept = {path: layer for path, layer in whole.layers.items() if "attn2" in path}
    zeroed = {p: layer if p in kept else layer.scaled(0.0) for p, layer in whole.layers.items()}
    absent, zero = (encode_adapter(replace(whole, layers=layers), bank()) for layers in (kept, zeroed))
    assert torch.equal(absent.present, zero.present)
    assert int(absent.present.sum()) == len(kept)
    assert torch.equal(absent.spectra, zero.spectra)
    assert not absent.sketch[~absent.present].any()
    full = encode_adapter(whole, bank())
    assert torch.allclose(full.sketch[absent.present], absent.sketch[absent.present])


def test_spectra_are_the_singular_values_of_the_dense_update() -> None:
    layers = {TABLE.index[path]: layer for path, layer in adapter(4, rank=6).layers.items()}
    for reduced in merged(reduce_layers(layers.items())):
        found = squared_singular_values(reduced.up, reduced.down, reduced.scale).sqrt()
        for place, values in zip(reduced.places, found, strict=True):
            expected = singular_values(layers[place])
            assert torch.allclose(values, expected, rtol=1e-5, atol=1e-6 * float(expected[0]))
            dense = torch.linalg.svdvals(layers[place].delta(torch.float64).flatten(1))[: len(values)]
            assert torch.allclose(values, dense, rtol=1e-5, atol=1e-6 * float(dense[0]))


def test_sketches_estimate_cosines_between_adapters() -> None:
    first, other = adapter(5, 8), adapter(6, 8)
    blend = replace(
        first,
        layers={
            path: LowRank(
                torch.cat([layer.down, other.layers[path].down]),
                torch.cat([layer.up, other.layers[path].up * 0.5], 1),
            )
            for path, layer in first.layers.items()
        },
    )
    found = [encode_adapter(a).whole for a in (first, other, blend)]
    for pair, (a, b) in (((0, 2), (first, blend)), ((0, 1), (first, other))):
        exact = sum(inner(a.layers[p], b.layers[p]) for p in a.layers)
        exact /= (
            sum(inner(v, v) for v in a.layers.values()) * sum(inner(v, v) for v in b.layers.values())
        ) ** 0.5
        estimate = torch.nn.functional.cosine_similarity(found[pair[0]], found[pair[1]], dim=0)
        assert abs(float(estimate) - exact) < 0.2
    assert cosine(first.layers[next(iter(first.layers))], other.layers[next(iter(other.layers))]) < 0.2


def test_text_probes_find_the_words_that_an_adapter_hears_and_says() -> None:
    """A planted map from one text state to another is heard at the first, and pulls towards the second."""
    probes = bank()
    heard_, said = probes.states[3], probes.states[50]
    layers = {}
    for place, weight in probes.weights.items():
        up = (weight @ said)[:, None]
        layers[place] = LowRank(heard_[None] / heard_.norm() ** 2, up)
    block = features(layers, TABLE, probes).text
    assert block is not None
    assert int(block.energy[0].argmax()) == 3
    direction = block.listen[0, 0]
    assert abs(float(torch.nn.functional.cosine_similarity(direction, heard_, dim=0))) > 0.9999
    echo = block.echo[0, 0] * torch.sign(direction @ heard_)
    answers = torch.nn.functional.cosine_similarity(echo[None], probes.states)
    assert int(answers.argmax()) == 50
    assert float(answers.max()) > 0.8


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda values: values * float("nan"), "NaN"),
        (lambda values: values * 0, "changes nothing"),
    ],
)
def test_files_of_no_use_are_refused(
    tmp_path: Path, damage: Callable[[torch.Tensor], torch.Tensor], says: str
) -> None:
    good = save(adapter(1), tmp_path / "good.safetensors")
    tensors = {k: damage(v) if "lora_up" in k else v for k, v in load_file(good).items()}
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(FormatError, match=says):
        encode_file(tmp_path / "bad.safetensors")
