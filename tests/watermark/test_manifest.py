"""The weight-level proof: what a signature covers, what breaks it, what it does not say."""

from __future__ import annotations

import json
from pathlib import Path

import markworlds as worlds
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_adapter, shapes_of

from loracomp import formats, merge
from loracomp.adapter import Adapter
from loracomp.errors import FormatError
from loracomp.watermark import canonical, manifest
from loracomp.watermark.gauge import gauged
from loracomp.watermark.header import with_strings
from loracomp.watermark.signing import print_of, public_key

KEY, OTHER = worlds.key(), worlds.key("mono", "mallory")
PUBLIC = public_key(KEY.signing_seed)


def adapter(seed: int = 0) -> Adapter:
    return random_adapter(shapes_of("sd15"), seed=seed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A LoRA with a header of its own."""
    return formats.save(adapter(), tmp_path / "mono.safetensors", metadata={"note": "a\u00e9\u4e2d"})


def tensors(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def test_signing_changes_the_header_alone(file: Path) -> None:
    before, loaded = tensors(file), formats.load(file, modules=shapes_of("sd15"))
    proof = manifest.sign_file(file, KEY, method="keyed", power=[[0.5, 0.99]])
    assert proof.status == "valid"
    assert tensors(file) == before
    again = formats.load(file, modules=shapes_of("sd15"))
    assert again.digest == loaded.digest
    assert again.metadata["note"] == "a\u00e9\u4e2d"
    assert proof.manifest["power"] == [["0.5", "0.99"]]
    assert proof.commitment == KEY.commitment
    assert proof.signer == print_of(PUBLIC)
    assert manifest.check_file(file, PUBLIC, manifest.detached_path(file)).status == "valid"


def test_the_digest_covers_names_types_shapes_and_bytes(tmp_path: Path) -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4)}
    changed = [
        base,
        base | {"a": torch.arange(6.0).reshape(3, 2)},
        base | {"b": torch.zeros(4, dtype=torch.float16)},
        {"a": base["a"], "c": base["b"]},
        base | {"b": torch.tensor([0.0, 0, 0, 1e-30])},
    ]
    found = []
    for number, table in enumerate(changed):
        save_file(table, tmp_path / f"{number}.safetensors", {"x": str(number)})
        found.append(canonical.tensor_digest(tmp_path / f"{number}.safetensors"))
    assert len(set(found)) == len(changed)
    save_file(base, tmp_path / "same.safetensors", {"other": "header"})
    assert canonical.tensor_digest(tmp_path / "same.safetensors") == found[0]


def test_tampering_is_found(file: Path) -> None:
    manifest.sign_file(file, KEY)
    good = file.read_bytes()
    strings = dict(formats.load(file, modules=shapes_of("sd15")).metadata)
    table = load_file(file)
    name = next(iter(table))

    def status(**changes: str) -> str:
        save_file(table, file, strings | {f"loracomp.watermark.{k}": v for k, v in changes.items()})
        return manifest.check_file(file, PUBLIC).status

    text = strings[manifest.MANIFEST]
    assert status() == "valid"
    assert status(manifest=text.replace('"lora":"mono"', '"lora":"mine"')) == "forged"
    assert status(manifest=text.replace('","', '", "')) == "damaged"
    assert status(manifest="[" * 9000) == "damaged"
    assert status(manifest="{}") == "damaged"
    assert status(signature="!!") == "damaged"
    assert status(signature="AAAA") == "forged"
    table[name] = table[name] + 1e-3
    assert status() == "other tensors"
    file.write_bytes(good)
    assert manifest.check_file(file, public_key(OTHER.signing_seed)).status == "forged"
    file.write_bytes(good[:-5])
    with pytest.raises(FormatError):
        manifest.check_file(file, PUBLIC)


def test_a_key_that_comes_with_the_file_proves_nothing(file: Path) -> None:
    """Whoever re-signs a stolen file can put his key beside his signature."""
    manifest.sign_file(file, OTHER)
    with_strings(file, {"loracomp.watermark.public_key": PUBLIC.hex()})
    proof = manifest.check_file(file, None)
    assert (proof.status, proof.embedded_key) == ("untrusted", True)
    assert manifest.check_file(file, PUBLIC).status == "forged"


def test_no_manifest_and_no_detached_copy(file: Path, tmp_path: Path) -> None:
    assert manifest.check_file(file, PUBLIC).status == "none"
    with pytest.raises(FormatError, match="no detached manifest"):
        manifest.check_file(file, PUBLIC, tmp_path / "none.json")


def test_merging_keeps_lineage_and_parents_manifests(tmp_path: Path) -> None:
    paths = [formats.save(adapter(n), tmp_path / f"{n}.safetensors") for n in range(2)]
    manifest.sign_file(paths[0], KEY)
    parents = [formats.load(path, modules=shapes_of("sd15")) for path in paths]
    merged = formats.save(merge(parents, [1.0, 0.5]), tmp_path / "merged.safetensors")
    proof = manifest.check_file(merged, PUBLIC)
    assert proof.status == "none"
    assert [(p.lora, p.status) for p in proof.parents] == [("mono", "valid")]
    signed = manifest.sign_file(merged, OTHER)
    assert signed.status == "valid"
    assert [row["weight"] for row in signed.manifest["parents"]] == ["1.0", "0.5"]
    assert signed.manifest["parents"][0]["hash"] == proof.parents[0].hash
    assert signed.parents[0].status == "forged"  # the parent was signed by another key than the merge


def test_headers_show_nothing_secret(file: Path) -> None:
    manifest.sign_file(file, KEY)
    text = file.read_bytes().decode("latin-1") + manifest.detached_path(file).read_text()
    assert not [secret for secret in KEY.spellings() if secret in text]
    assert json.loads(text[text.index('{"manifest"') :])["signature"]


def test_canonical_json_has_one_spelling() -> None:
    assert canonical.canonical({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"é"]}'.encode()
    with pytest.raises(ValueError, match="as text"):
        canonical.canonical({"a": [{"b": 0.5}]})


def test_copies_have_their_own_gauge_and_the_same_update() -> None:
    plain = adapter()
    mine, theirs = gauged(plain, KEY), gauged(plain, OTHER)
    for path, layer in plain.layers.items():
        torch.testing.assert_close(mine.layers[path].delta(), layer.delta(), atol=1e-5, rtol=1e-4)
        assert float((mine.layers[path].down - theirs.layers[path].down).abs().max()) > 1e-3
    path, layer = next(iter(plain.layers.items()))
    down = (mine.layers[path].down + theirs.layers[path].down) / 2
    up = (mine.layers[path].up + theirs.layers[path].up) / 2
    assert float((up @ down - layer.delta()).norm()) > 0.3 * float(layer.delta().norm())
