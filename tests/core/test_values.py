"""Adapters, bases, the registry and errors as values."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from loracomp.adapter import Adapter
from loracomp.bases import BASES, classic_path, detect_base, get_base, modules
from loracomp.errors import BaseMismatchError, LoracompError, UnknownNameError
from loracomp.lowrank import LowRank
from loracomp.registry import Registry
from loracomp.training.tables import BUILDERS, table


def small(seed: int = 0, names: tuple[str, ...] = ("unet.b", "unet.a", "text_encoder.c")) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    layers = {n: LowRank(torch.randn(2, 3, generator=g), torch.randn(4, 2, generator=g), 1.0) for n in names}
    return Adapter(layers, "glyph", metadata={"modelspec.trigger_phrase": "sks cat, blue"})


def test_an_adapter_is_a_sorted_read_only_value() -> None:
    adapter = small()
    assert list(adapter.layers) == ["text_encoder.c", "unet.a", "unet.b"]
    assert adapter.components == ("text_encoder", "unet")
    assert set(adapter.component("unet")) == {"a", "b"}
    assert adapter.trigger_words == ("sks cat", "blue")
    with pytest.raises(TypeError):
        adapter.layers["unet.a"] = adapter.layers["unet.b"]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        adapter.name = "other"  # type: ignore[misc]


def test_the_digest_follows_content_alone() -> None:
    adapter = small()
    renamed = Adapter(dict(reversed(adapter.layers.items())), "glyph", "other", {"a": "b"})
    assert renamed.digest == adapter.digest
    others = [small(1), adapter.scaled(0.5), adapter.to(dtype=torch.float16)]
    assert len({adapter.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize("name", BASES)
def test_a_base_recognises_its_own_layers(name: str) -> None:
    shapes = dict(modules(name))
    assert detect_base(shapes) == (name, 1.0)
    for suffix in get_base(name).targets:
        assert any(path.endswith(f".{suffix}") for path in shapes), suffix
    assert {path.split(".")[0] for path in shapes} <= {get_base(name).denoiser, *get_base(name).text_encoders}


@pytest.mark.parametrize("name", BUILDERS)
def test_committed_tables_match_the_configurations(name: str) -> None:
    assert table(name) == dict(modules(name))


def test_text_encoder_paths_have_one_spelling() -> None:
    assert (
        classic_path("text_encoder.encoder.layers.0.mlp.fc1")
        == "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    )
    for path in (
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
        "unet.encoder.layers.0",
        "text_encoder_3.encoder.block.0",
    ):
        assert classic_path(path) == path


def test_a_registry_refuses_duplicates_and_suggests_names() -> None:
    registry: Registry[int] = Registry("colour")
    registry.register("green", summary="like grass", paper="1234.5678")(3)
    with pytest.raises(ValueError, match="already registered"):
        registry.register("green", summary="again")(4)
    with pytest.raises(UnknownNameError, match=r"unknown colour 'gren'; did you mean green\?"):
        registry["gren"]
    assert registry["green"] == 3
    assert registry.entry("green").paper == "1234.5678"
    assert list(registry) == ["green"]
    assert "x" not in registry


def tree(kind: type[LoracompError]) -> list[type[LoracompError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in tree(child))]


def test_every_error_has_a_documented_exit_code() -> None:
    assert {kind.exit_code for kind in tree(LoracompError)} <= {1, 2, 3, 4, 5, 130}
    text = str(BaseMismatchError("cat", "SDXL", "glyph", "why"))
    assert "cat" in text
    assert "SDXL" in text
    assert "glyph" in text
    assert "\n" not in text
