"""``loracomp watermark`` from end to end at a tiny size: outputs, exit codes, and no secret anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from commandline import Run
from markcli import SEEN, SHAPE, issue, noise, options, save_pictures
from tiny import random_adapter, shapes_of

from loracomp import formats
from loracomp.watermark import keyfile, manifest
from loracomp.watermark.codec import Codec
from loracomp.watermark.header import with_strings
from loracomp.watermark.keys import Key


def marked_pictures(place: Path, key: Key, count: int, seed: int = 900) -> torch.Tensor:
    """Pictures pushed, by gradient, to be read as a key's: what a marked LoRA would draw."""
    from loracomp.watermark.codec import load_codec

    extractor = load_codec(place / "codec.safetensors").extractor
    x = noise(count, seed).requires_grad_()
    direction = key.direction(SHAPE.dimensions).float()
    for _ in range(12):
        (gradient,) = torch.autograd.grad((extractor(x) @ direction).sum(), x)
        with torch.no_grad():
            x = (x + 0.02 * gradient.sign()).clamp(0, 1)
        x.requires_grad_()
    return x.detach()


def test_keygen(place: Path, loracomp: Run, tmp_path: Path) -> None:
    owner = tmp_path / "owner.key"
    assert loracomp("watermark", "keygen", "--out", owner)[0] == 0
    assert owner.stat().st_mode & 0o777 == 0o600
    code, _, error = loracomp("watermark", "keygen", "--out", owner)
    assert (code, "never overwritten" in error) == (2, True)
    out, log = tmp_path / "a.key", tmp_path / "log.jsonl"
    words = ["--owner", owner, "--lora", "a", "--out", out, "--log", log, "--json"]
    screen = ["--calibration", place / "calibration.safetensors"]
    code, text, _ = loracomp("watermark", "keygen", *words, *screen)
    facts = json.loads(text)
    assert (code, facts["lora"], facts["screened"]) == (0, "a", True)
    assert json.loads(log.read_text())["commitment"] == facts["commitment"]
    assert out.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a.pub").stat().st_mode & 0o077
    assert loracomp("watermark", "keygen", "--lora", "a", "--out", tmp_path / "b.key")[0] == 2
    owner.chmod(0o640)
    code, _, error = loracomp(
        "watermark", "keygen", "--owner", owner, "--lora", "b", "--out", tmp_path / "b.key"
    )
    assert (code, "chmod 600" in error) == (2, True)


def test_verify_has_five_exit_codes(place: Path, loracomp: Run, tmp_path: Path) -> None:
    path = issue(place, loracomp)
    key = keyfile.read_key(path)
    files = save_pictures(tmp_path / "marked", marked_pictures(place, key, 5))
    plain = save_pictures(tmp_path / "plain", noise(5, 950))
    common = ["--key", path, *options(place), "--alpha", 0.02]
    code, text, _ = loracomp("watermark", "verify", *files, *common, "--json")
    facts = json.loads(text)
    assert facts["decision"] in ("verified", "inconclusive"), facts["reasons"]
    assert facts["score"]["p_key"] < 1e-6
    assert code == {"verified": 0, "inconclusive": 3}[facts["decision"]]
    # A random key scores that high on plain pictures with this probability.
    code, text, _ = loracomp("watermark", "verify", *plain, *common[:-1], 1e-5)
    assert (code, text.startswith("NO EVIDENCE")) in ((1, True), (3, False))
    code, text, _ = loracomp("watermark", "verify", files[0], files[0], *common, "--json")
    facts = json.loads(text)
    assert (code, facts["images"], len(facts["duplicates"])) == (3, 1, 1)
    code, _, error = loracomp("watermark", "verify", *files, "--key", path, "--base", "sd15")
    assert code == 5, error
    code, _, error = loracomp(
        "watermark", "verify", *files, "--key", path, "--codec", place / "codec.safetensors",
        "--calibration", tmp_path / "none",
    )  # fmt: skip
    assert (code, "no calibration" in error) == (5, True)
    cut = tmp_path / "cut.png"
    cut.write_bytes(files[0].read_bytes()[:-30])
    assert loracomp("watermark", "verify", cut, *common)[0] == 4
    assert loracomp("watermark", "verify", *files, *common[:-2], "--alpha", 2)[0] == 2


def test_a_foreign_calibration_is_refused(place: Path, loracomp: Run, tmp_path: Path) -> None:
    torch.manual_seed(7)
    Codec.fresh(SHAPE, "sd15").save(tmp_path / "other.safetensors")
    files = save_pictures(tmp_path / "plain", noise(3, 1))
    code, _, error = loracomp(
        "watermark", "verify", *files, "--key", issue(place, loracomp),
        "--codec", tmp_path / "other.safetensors", "--calibration", place / "calibration.safetensors",
    )  # fmt: skip
    assert (code, "another codec" in error) == (5, True)


def test_keys_inside_artefacts_are_no_evidence(place: Path, loracomp: Run, tmp_path: Path) -> None:
    path = issue(place, loracomp)
    files = save_pictures(tmp_path / "plain", noise(3, 2))
    lora = formats.save(random_adapter(shapes_of("sd15")), tmp_path / "x.safetensors")
    code, _, error = loracomp("watermark", "verify", *files, "--key", lora, *options(place))
    assert (code, "proves nothing" in error) == (2, True)
    assert loracomp("watermark", "verify", *files, "--key", files[0], *options(place))[0] == 2
    assert loracomp("watermark", "verify", *files, "--key", place / "owner.key", *options(place))[0] == 2
    key = keyfile.read_key(path)
    manifest.sign_file(lora, key)
    with_strings(lora, {"loracomp.watermark.public_key": "00"})
    code, text, _ = loracomp("watermark", "inspect", lora)
    assert (code, "proves nothing" in text) == (3, True)


def test_inspect_and_tampering(place: Path, loracomp: Run, tmp_path: Path) -> None:
    path = issue(place, loracomp)
    key, public = keyfile.read_key(path), path.with_suffix(".pub")
    lora = formats.save(random_adapter(shapes_of("sd15")), tmp_path / "x.safetensors")
    assert loracomp("watermark", "inspect", lora, "--trust", public)[0] == 1
    manifest.sign_file(lora, key)
    assert loracomp("watermark", "inspect", lora, "--trust", public)[0] == 0
    assert loracomp("watermark", "inspect", lora)[0] == 3
    code, text, _ = loracomp("watermark", "inspect", lora, "--trust", public, "--json")
    assert (code, json.loads(text)["manifest"]["lora"]) == (0, "mono")
    detached = lora.with_suffix(".manifest.json")
    assert loracomp("watermark", "inspect", lora, "--trust", public, "--detached", detached)[0] == 0
    other = formats.save(random_adapter(shapes_of("sd15"), seed=1), tmp_path / "y.safetensors")
    strings = {
        k: v for k, v in formats.load(lora, modules=shapes_of("sd15")).metadata.items() if "watermark" in k
    }
    with_strings(other, strings)
    code, text, _ = loracomp("watermark", "inspect", other, "--trust", public)
    assert (code, "for other tensors" in text) == (4, True)
    files = save_pictures(tmp_path / "plain", noise(3, 3))
    code, _, _ = loracomp("watermark", "verify", *files, "--key", path, "--adapter", other, *options(place))
    assert code == 4


def test_attribute(place: Path, loracomp: Run, tmp_path: Path) -> None:
    paths = [issue(place, loracomp, f"lora-{n}") for n in range(3)]
    key = keyfile.read_key(paths[1])
    files = save_pictures(tmp_path / "marked", marked_pictures(place, key, 5))
    code, text, _ = loracomp(
        "watermark",
        "attribute",
        *files,
        "--registry",
        place / "keys",
        "--rate",
        0.2,
        *options(place),
        "--json",
    )
    rows = json.loads(text)["loras"]
    assert rows[0]["lora"] == "lora-1"
    assert code == (0 if rows[0]["named"] else 1)
    assert (
        loracomp("watermark", "attribute", *files, "--registry", tmp_path / "none", *options(place))[0] == 2
    )
    plain = save_pictures(tmp_path / "plain", noise(5, 970))
    assert loracomp("watermark", "attribute", *plain, "--registry", place / "keys", *options(place))[0] == 1


def test_train_with_a_mark(place: Path, base: Path, loracomp: Run, tmp_path: Path) -> None:
    save_pictures(tmp_path / "data", noise(4, 5))
    out, path = tmp_path / "ink.safetensors", issue(place, loracomp, "ink")
    words: list[Any] = [
        "train", "run", tmp_path / "data", "--kind", "style", "--name", "ink", "--base", base, "--steps", 2,
        "--batch", 2, "--rank", 2, "--set", "resolution=32", "--set", "sample_count=0", "--out", out,
        "--device", "cpu",
    ]  # fmt: skip
    mark = ["--mark", "steps=2", "--mark", "batch=2", "--codec", place / "codec.safetensors"]
    code, _, error = loracomp(*words, *mark)
    assert (code, "--watermark" in error) == (2, True)
    code, _, error = loracomp(*words, *mark, "--watermark", path, "--json")
    assert code == 0, error
    assert loracomp("watermark", "inspect", out, "--trust", path.with_suffix(".pub"))[0] == 0
    assert (tmp_path / "ink.twin.safetensors").exists()
    (tmp_path / "b.safetensors.ckpt").mkdir()
    (tmp_path / "b.safetensors.ckpt" / "mark.json").write_text("{}")
    code, _, error = loracomp("train", "resume", tmp_path / "b.safetensors")
    assert (code, "the same `train run` command" in error) == (2, True)


def test_nothing_secret_was_printed_or_written(place: Path) -> None:
    """All that the tests above printed, and every file beside the keys themselves."""
    assert len(SEEN) > 20
    text = "".join(SEEN)
    for path in (place / "keys").glob("*.key"):
        spellings = keyfile.read_key(path).spellings()
        assert not [secret for secret in spellings if secret in text]
        for other in place.parent.rglob("*"):
            if other.is_file() and other.suffix != ".key" and other.stat().st_size < 1 << 22:
                raw = other.read_bytes().decode("latin-1")
                assert not [secret for secret in spellings[:-1] if secret in raw], other
