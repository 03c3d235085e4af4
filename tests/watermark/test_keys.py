"""Keys: derivation, rules, files, and what must never be seen of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import markworlds as worlds
import pytest
import torch

from loracomp.errors import FormatError, ResourceError, UsageError
from loracomp.watermark import keyfile, ledger, stream
from loracomp.watermark.keys import Key, OwnerKey
from loracomp.watermark.signing import public_key


def test_a_stream_is_the_same_forever() -> None:
    """Marks of today have to be readable in years: these numbers must not change."""
    assert stream.octets(b"s", "p", 8).hex() == stream.octets(b"s", "p", 64).hex()[:16]
    assert stream.uniforms(b"secret", "x", 3).tolist() == pytest.approx(
        [0.40012716395465503, 0.37247402337621033, 0.5524261717251822], abs=1e-15
    )
    draws = stream.normals(b"secret", "x", 20_001)
    assert abs(float(draws.mean())) < 0.03
    assert float(draws.std()) == pytest.approx(1, abs=0.02)


def test_frames_are_orthonormal_and_differ_by_purpose() -> None:
    one, two = stream.frame(b"k", "a", 20, 90), stream.frame(b"k", "b", 20, 90)
    torch.testing.assert_close(one @ one.T, torch.eye(20).double())
    assert float((one @ two.T).abs().max()) < 0.6
    with pytest.raises(ValueError, match="do not fit"):
        stream.frame(b"k", "a", 5, 4)


def test_directions_are_uniform_over_keys() -> None:
    rows = torch.stack([worlds.key(f"lora-{n}").direction(64) for n in range(150)])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(150).double())
    values = torch.linalg.svdvals(rows)
    assert float(values.max() / values.min()) < 7  # a square-root law for 150 points in 64 dimensions
    assert float(rows.mean(0).norm()) < 0.16


def test_keys_are_derived_and_independent() -> None:
    owner = OwnerKey(b"\x01" * 32)
    assert owner.derive("a", "bob", 0) == owner.derive("a", "bob", 0)
    different = [
        owner.derive("a", "bob", 0), owner.derive("a", "bob", 1), owner.derive("ab", "ob", 0),
        owner.derive("a", "", 0), OwnerKey(b"\x02" * 32).derive("a", "bob", 0),
    ]  # fmt: skip
    assert len({key.secret for key in different}) == len(different)


def test_messages_are_balanced_and_distant() -> None:
    owner = OwnerKey(b"\x03" * 32)
    issued: list[Key] = []
    for number in range(12):
        key = owner.issue("mono", f"user-{number}", 32, issued)
        assert 13 <= int(key.message.sum()) <= 19
        assert all(int((key.message != other.message).sum()) >= 8 for other in issued)
        issued.append(key)
    assert any(key.counter > 0 for key in issued)


def test_screening_advances_the_counter() -> None:
    owner = OwnerKey(b"\x04" * 32)
    free = owner.issue("mono")
    later = owner.issue("mono", screen=lambda key: key.counter > free.counter)
    assert later.counter > free.counter
    with pytest.raises(UsageError, match="no key keeps its distance"):
        owner.issue("mono", screen=lambda key: False)
    with pytest.raises(UsageError, match="8 to 256 bits"):
        owner.issue("mono", bits=4)


def test_files_are_private_and_never_overwritten(tmp_path: Path) -> None:
    owner = OwnerKey.create()
    key = owner.issue("mono", "alice")
    place = keyfile.write_owner(tmp_path / "owner.key", owner)
    issued = keyfile.write_key(tmp_path / "mono.key", key)
    for path in (place, issued):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(UsageError, match="never overwritten"):
            keyfile.write_key(path, key)
    assert keyfile.read_owner(place) == owner
    assert keyfile.read_key(issued) == key
    issued.chmod(0o644)
    with pytest.raises(UsageError, match=r"others may read it \(mode 644\); run `chmod 600"):
        keyfile.read_key(issued)


def test_wrong_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    owner = OwnerKey.create()
    key = owner.issue("mono")
    place = keyfile.write_owner(tmp_path / "owner.key", owner)
    public = keyfile.write_public(tmp_path / "mono.pub", public_key(key.signing_seed), key)
    assert keyfile.read_public(public) == public_key(key.signing_seed)
    with pytest.raises(UsageError, match="issue one for this LoRA"):
        keyfile.read_key(place)
    public.chmod(0o600)
    with pytest.raises(UsageError, match="verifies manifests alone"):
        keyfile.read_key(public)
    with pytest.raises(ResourceError, match="no such key file"):
        keyfile.read_key(tmp_path / "none.key")
    with pytest.raises(UsageError, match="proves nothing"):
        keyfile.read_key(tmp_path / "mono.safetensors")
    for text in ("", "{", "[]", "null", '{"format": "x"}', "\0" * 10, "9" * 70_000):
        bad = tmp_path / "bad.key"
        bad.write_text(text)
        bad.chmod(0o600)
        with pytest.raises(FormatError, match="no key file"):
            keyfile.read_key(bad)
    table = json.loads(keyfile.write_key(tmp_path / "a.key", key).read_text())
    for name, value in (("secret", "AAAA"), ("secret", "%"), ("bits", 3), ("lora", 7)):
        bad.write_text(json.dumps({**table, name: value}))
        with pytest.raises(FormatError, match="damaged key file"):
            keyfile.read_key(bad)


def test_nothing_secret_is_shown(tmp_path: Path) -> None:
    owner = OwnerKey.create()
    key = owner.issue("mono")
    text = f"{owner!r}{owner}{key!r}{key}{key.commitment}"
    public = keyfile.write_public(tmp_path / "mono.pub", public_key(key.signing_seed), key).read_text()
    secrets = (*key.spellings(), owner.master.hex(), base64.b64encode(owner.master).decode())
    assert not [secret for secret in secrets if secret in text + public]


def test_commitments_bind_and_hide() -> None:
    first, second = worlds.key("mono"), worlds.key("mono", "bob")
    assert first.commitment == worlds.key("mono").commitment
    assert first.commitment != second.commitment
    assert len(first.commitment) == 64


def test_the_log_is_a_chain(tmp_path: Path) -> None:
    log = tmp_path / "commitments.jsonl"
    first = ledger.commit(log, worlds.key("a"))
    ledger.commit(log, worlds.key("b"))
    assert ledger.commit(log, worlds.key("a")) == first
    assert len(ledger.read(log)) == 2
    assert ledger.logged(log, worlds.key("b").commitment) is not None
    assert ledger.logged(log, worlds.key("c").commitment) is None
    lines = log.read_text().splitlines()
    log.write_text(lines[0].replace(first.logged[:4], "1999") + "\n" + lines[1] + "\n")
    with pytest.raises(FormatError, match="line 2 does not follow"):
        ledger.read(log)
    log.write_text("{}\n")
    with pytest.raises(FormatError, match="no log"):
        ledger.read(log)
