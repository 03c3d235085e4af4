"""Every algebra makes the update that LyCORIS, the reference implementation, makes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from loracomp.errors import FormatError, PartialLoadError
from loracomp.formats import inspect, load, save
from loracomp.formats.matrices import Dense, Hadamard, Kronecker, norm, reduce

lycoris = pytest.importorskip("lycoris.modules")

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
TABLE = {LINEAR: (64, 48), CONV: (64, 32, 3, 3)}
NAMES = {path: "lora_unet_" + path.removeprefix("unet.").replace(".", "_") for path in TABLE}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoConModule", {}),
    "tucker": ("LoConModule", {"use_tucker": True}),
    "rslora": ("LoConModule", {"rs_lora": True}),
    "loha": ("LohaModule", {}),
    "loha-tucker": ("LohaModule", {"use_tucker": True}),
    "lokr": ("LokrModule", {"factor": 4}),
    "lokr-both": ("LokrModule", {"factor": 16, "decompose_both": True}),
    "lokr-tucker": ("LokrModule", {"factor": 4, "use_tucker": True}),
    "lokr-full": ("LokrModule", {"full_matrix": True}),
    "full": ("FullModule", {}),
}
DORA: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LoConModule", {"weight_decompose": True}),
    "dora-columns": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "dora-loha": ("LohaModule", {"weight_decompose": True}),
}


def module_of(kind: str, options: dict[str, Any], layer: nn.Module) -> tuple[Any, dict[str, Tensor]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = getattr(lycoris, kind)("n", layer, 1.0, lora_dim=2, alpha=3, **options)
    for name, parameter in module.named_parameters():
        if name not in ("scalar", "dora_scale", "bias"):
            nn.init.normal_(parameter)
        elif name == "dora_scale":
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    if kind == "FullModule":
        module.apply_to()  # its state is the difference only once it stands in for the layer
    state = module.custom_state_dict()
    return module, {
        key: value.detach().clone().contiguous() for key, value in (state or module.state_dict()).items()
    }


def change_of(module: Any, weight: Tensor) -> Tensor:
    """The change that a module makes to a weight when it runs.

    Not ``get_merged_weight`` for LoHa and LoKr: it multiplies with alpha / rank a second time there,
    unlike the module's own forward pass (lycoris-lora 4.1.3).
    """
    if type(module).__name__ == "FullModule":
        return module.get_diff_weight()[0]
    if type(module).__name__ == "LoConModule":
        return module.get_merged_weight()[0] - weight
    change = module.get_weight(weight.shape).reshape(weight.shape)
    return module.apply_weight_decompose(weight + change) - weight if module.wd else change


def written(kind: str, options: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Writes a LyCORIS file of a linear and a convolution layer; their changes, and their weights."""
    torch.manual_seed(1)
    layers = {LINEAR: nn.Linear(48, 64), CONV: nn.Conv2d(32, 64, 3)}
    tensors, expected, weights = {}, {}, {}
    for name, layer in layers.items():
        weights[name] = layer.weight.detach().clone()
        module, state = module_of(kind, options, layer)
        expected[name] = change_of(module, weights[name]).detach()
        state = {key: value for key, value in state.items() if key != "diff_b"}
        tensors |= {f"{NAMES[name]}.{key}": value for key, value in state.items()}
    save_file(tensors, path)
    return expected, weights


@pytest.mark.parametrize("case", CASES)
def test_updates_equal_those_of_lycoris(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    expected, _ = written(*CASES[case], path)
    adapter = load(path, modules=TABLE)
    assert "loracomp.approximation_error" not in adapter.metadata
    report = inspect(path, modules=TABLE)
    assert report.complete
    for row in report.rows:
        change = expected[row.path]
        assert (adapter.layers[row.path].delta() - change).norm() <= 2e-6 * change.norm()
        assert row.norm == pytest.approx(float(change.norm()), rel=1e-5)
    again = load(save(adapter, tmp_path / "b.safetensors", modules=TABLE), modules=TABLE)
    assert again.layers.keys() == adapter.layers.keys()
    assert inspect(tmp_path / "b.safetensors", modules=TABLE).canonical_hash == report.canonical_hash


@pytest.mark.parametrize("case", DORA)
def test_dora_is_converted_with_the_weights_at_hand(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    expected, weights = written(*DORA[case], path)
    adapter = load(path, modules=TABLE, weights=weights.__getitem__)
    for name, change in expected.items():
        assert (adapter.layers[name].delta() - change).norm() <= 1e-5 * change.norm()
    with pytest.raises(
        PartialLoadError, match=r"dora_scale \(a DoRA magnitude; the base's weights are needed"
    ):
        load(path, modules=TABLE)
    assert len(load(path, modules=TABLE, allow_partial=True).layers) == 2
    report = inspect(path, modules=TABLE)
    assert not report.complete and {row.algebra for row in report.rows} == {"dora"}
    assert inspect(path, modules=TABLE, weights=weights.__getitem__).complete


def test_an_approximation_is_refused_or_stated(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    change = torch.randn(64, 48)
    save_file({f"{NAMES[LINEAR]}.diff": change}, path)
    with pytest.raises(
        PartialLoadError, match=r"need more than rank 8 \(at that rank lora_unet_.* misses \d"
    ):
        load(path, modules=TABLE, rank=8)
    adapter = load(path, modules=TABLE, rank=8, allow_partial=True)
    missed = (adapter.layers[LINEAR].delta() - change).norm() / change.norm()
    assert float(adapter.metadata["loracomp.approximation_error"]) == pytest.approx(float(missed), rel=1e-2)
    best = torch.linalg.svdvals(change)[8:].norm() / change.norm()
    assert missed == pytest.approx(float(best), rel=1e-3)


def test_what_an_adapter_cannot_hold_is_named_unless_it_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    name = NAMES[LINEAR]
    lora = {f"{name}.lora_down.weight": torch.randn(2, 48), f"{name}.lora_up.weight": torch.randn(64, 2)}
    norms = {"lora_unet_mid_block_resnets_0_norm1.w_norm": torch.zeros(4), f"{name}.diff_b": torch.zeros(64)}
    save_file(lora | norms, path)
    assert inspect(path, modules=TABLE).ignored.keys() == norms.keys()
    assert len(load(path, modules=TABLE).layers) == 1
    others = {
        f"{name}.diff_b": "a change of a bias",
        "lora_unet_mid_block_resnets_0_norm1.w_norm": "a change of a normalisation",
        f"{name}.oft_blocks": "an OFT rotation",
        "bundle_emb.cat.clip_l": "an embedding bundled",
        "lora_unet_nowhere.alpha": "no such module",
        f"{NAMES[CONV]}.alpha": "incomplete: alpha alone",
    }
    save_file(lora | {key: torch.ones(64) for key in others}, path)
    report = inspect(path, modules=TABLE)
    assert report.unmatched.keys() == others.keys()
    for key, reason in others.items():
        assert report.unmatched[key].startswith(reason), key
    with pytest.raises(PartialLoadError, match="6 of 8 tensors"):
        load(path, modules=TABLE)


def test_factors_of_a_kind_that_holds_no_fractions(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    name = NAMES[LINEAR]
    save_file(
        {
            f"{name}.lora_down.weight": torch.ones(2, 48, dtype=torch.int8),
            f"{name}.lora_up.weight": torch.ones(64, 2, dtype=torch.int8),
        },
        path,
    )
    with pytest.raises(FormatError, match=r"holds torch.int8, no fractions"):
        load(path, modules=TABLE)


MATRICES = {
    "hadamard": Hadamard(*(torch.randn(s) for s in ((40, 3), (3, 30), (40, 2), (2, 30))), scale=0.5),
    "kronecker": Kronecker(torch.randn(4, 5), torch.randn(10, 2), torch.randn(2, 6), 2.0),
    "kronecker-whole": Kronecker(torch.randn(5, 4), None, torch.randn(3, 8), -1.0),
    "dense": Dense(torch.randn(12, 30)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_rows_factors_norms_and_reductions_agree(name: str) -> None:
    matrix = MATRICES[name]
    rows, columns = matrix.size
    whole = torch.cat([matrix.rows(i, i + 1) for i in range(rows)])
    up, down = matrix.factors()
    assert up.shape == (rows, matrix.rank_bound) and torch.allclose(up @ down, whole, atol=1e-4)
    assert norm(matrix) == pytest.approx(float(whole.norm()), rel=1e-6)
    exact = reduce(matrix, (rows, columns), 64)
    assert exact.error == 0 and torch.allclose(exact.layer.delta(), whole, atol=1e-4)
    rough = reduce(matrix, (rows, columns), 2)
    expected = torch.linalg.svdvals(whole)[2:].norm() / whole.norm()
    assert rough.layer.rank == 2 and rough.error == pytest.approx(float(expected), rel=1e-2)
