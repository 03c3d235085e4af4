"""The doctor explains what other tools get wrong, finds duplicates, and survives every file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from loracomp.adapter import Adapter
from loracomp.bases import modules
from loracomp.cli.doctor import convert as convert_command
from loracomp.cli.doctor import doctor as doctor_command
from loracomp.formats import Checkup, Diagnosis, diagnose, doctor, inspect, load, save, shipped_folder
from loracomp.formats.intruders import intruders
from loracomp.lowrank import LowRank, canonical

Q = ".to_q"


def adapter(base: str, alpha: float | None = 4.0, count: int = 6, seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    paths = [path for path in modules(base) if path.endswith(Q)][:count]
    layers = {
        path: LowRank(
            torch.randn((2, modules(base)[path][1]), generator=generator),
            torch.randn((modules(base)[path][0], 2), generator=generator),
            alpha,
        )
        for path in paths
    }
    return Adapter(layers, base, "a")


def codes(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings}


def only(path: Path) -> Diagnosis:
    return diagnose(path)


def restated(path: Path, **changes: str) -> Path:
    """The file with header strings changed; an empty one is taken out."""
    with safe_open(path, "pt") as file:
        strings = {**(file.metadata() or {}), **changes}
    save_file(load_file(path), path, {key: value for key, value in strings.items() if value})
    return path


def test_a_file_of_ours_is_in_order(tmp_path: Path) -> None:
    path = save(adapter("sdxl"), tmp_path / "a.safetensors", metadata={"modelspec.license": "CC-BY-4.0"})
    diagnosis = only(path)
    assert diagnosis.complete and codes(diagnosis) == {"licence"}
    assert diagnosis.findings[0].message == "licence: CC-BY-4.0"
    assert {row.scale for row in diagnosis.report.rows} == {2.0} if diagnosis.report else False


def test_strength_in_the_header_alone_is_a_warning_and_a_stripped_header_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {}
    for name, layer in adapter("flux", None).layers.items():
        tensors |= {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}
    config = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})
    save_file(tensors, path, {"lora_adapter_metadata": config})
    stated = only(path)
    assert "header-alpha" in codes(stated) and "no-alpha" not in codes(stated)
    assert "×2 by the header alone" in next(f.message for f in stated.findings if f.code == "header-alpha")
    save_file(tensors, path)
    assert "no-alpha" in codes(only(path)) and "header-alpha" not in codes(only(path))
    mended = save(load(path), tmp_path / "b.safetensors")
    assert not {"header-alpha"} & codes(only(mended))


def test_kohya_files_that_diffusers_reads_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert "diffusers-sd3" in codes(only(save(adapter("sd3"), path, dialect="kohya")))
    assert "diffusers-sd3" not in codes(only(save(adapter("sd3"), path)))
    flux = adapter("flux")
    outer = "transformer.x_embedder"
    shape = modules("flux")[outer]
    layers = {**flux.layers, outer: LowRank(torch.randn(2, shape[1]), torch.randn(shape[0], 2))}
    both = Adapter(layers, "flux", "a")
    assert "diffusers-flux-outside" in codes(only(save(both, path, dialect="kohya")))
    assert "diffusers-flux-outside" not in codes(only(save(flux, path, dialect="kohya")))
    save(adapter("sd15"), path)
    assert "diffusers-mixed-alpha" not in codes(only(path))
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith(".alpha"))
    save_file(tensors | {key: torch.tensor(1.0)}, path)
    assert "diffusers-mixed-alpha" in codes(only(path))
    assert "diffusers-mixed-alpha" not in codes(only(save(load(path), tmp_path / "b.safetensors")))


def test_algebras_that_diffusers_refuses_or_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = {"hada_w1_a": (320, 2), "hada_w1_b": (2, 320), "hada_w2_a": (320, 2), "hada_w2_b": (2, 320)}
    save_file({f"{name}.{part}": torch.randn(shape) for part, shape in shapes.items()}, path)
    assert "diffusers-algebra" in codes(only(path))
    lora = {f"{name}.lora_down.weight": torch.randn(2, 320), f"{name}.lora_up.weight": torch.randn(320, 2)}
    save_file(lora | {f"{name}.dora_scale": torch.rand(320, 1)}, path)
    found = only(path)
    assert {"diffusers-dora", "unmatched"} <= codes(found) and not found.complete


def test_header_problems(tmp_path: Path) -> None:
    path = save(adapter("sd15"), tmp_path / "a.safetensors")
    assert not {"hash", "claims", "metadata", "rank"} & codes(only(path))
    for change, code in (
        ({"sshs_model_hash": "0" * 64}, "hash"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "claims"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "claims"),
        ({"modelspec.title": ""}, "metadata"),
        ({"ss_tag_frequency": "{"}, "metadata"),
        ({"ss_network_dim": "64"}, "rank"),
        ({"ss_network_dim": "9" * 5000}, "rank"),
    ):
        other = save(adapter("sd15"), tmp_path / "b.safetensors")
        assert code in codes(only(restated(other, **change))), change


def test_health_is_reported(tmp_path: Path) -> None:
    layers = dict(adapter("sd15", count=24).layers)
    first, second = [path for path in layers if "attn1" in path and "down" in path][:2]
    layers[first] = LowRank(layers[first].down, torch.zeros_like(layers[first].up), 4.0)
    layers[second] = layers[second].scaled(-500.0)
    diagnosis = only(save(Adapter(layers, "sd15", "a"), tmp_path / "a.safetensors", dialect="kohya"))
    assert {"zero", "outlier"} <= codes(diagnosis) and diagnosis.complete
    loud = {path: layer.scaled(-1) for path, layer in adapter("sd15").layers.items()}
    flipped = only(save(Adapter(loud, "sd15", "a"), tmp_path / "a.safetensors", dialect="kohya"))
    assert "strength" in codes(flipped)


def test_duplicates_in_another_dialect_gauge_or_dtype(tmp_path: Path) -> None:
    original = adapter("sd15")
    torch.manual_seed(3)
    turn = torch.randn(2, 2)
    gauge = original.map(lambda x: LowRank(torch.linalg.solve(turn, x.down), x.up @ turn, x.alpha))
    padded = original.map(lambda x: LowRank(torch.cat([x.down] * 2), torch.cat([x.up, x.up * 0], 1), 8.0))
    same = [
        save(original, tmp_path / "a.safetensors"),
        save(original, tmp_path / "b.safetensors", dialect="peft", dtype=torch.float16),
        save(gauge, tmp_path / "c.safetensors", dialect="diffusers", dtype=torch.bfloat16),
        save(original.map(canonical), tmp_path / "d.safetensors", dialect="diffusers-old"),
        save(padded, tmp_path / "e.safetensors"),
    ]
    save(original.scaled(1.1), tmp_path / "x.safetensors")
    tensors = load_file(same[0])
    key = next(key for key in tensors if key.endswith("up.weight"))
    for name in ("nan1", "nan2"):
        save_file(tensors | {key: tensors[key] * torch.nan}, tmp_path / f"{name}.safetensors")
    save(adapter("sd15", seed=1), tmp_path / "y.safetensors")
    checkup = doctor([tmp_path])
    assert checkup.duplicates == (tuple(map(str, same)),)
    hashes = {Path(d.file).name: d.report.canonical_hash for d in checkup.diagnoses if d.report}
    assert len({hashes[path.name] for path in (*same[:1], *same[3:])}) == 1
    assert hashes["x.safetensors"] != hashes["a.safetensors"] != hashes["y.safetensors"]
    assert "duplicate" in codes(checkup.diagnoses[0]) and "duplicate" not in codes(checkup.diagnoses[-1])


def test_processes_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    for index in range(3):
        save(adapter("sd15", seed=index), tmp_path / f"{index}.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x02 pickle")
    steps: list[tuple[int, int]] = []
    parallel = doctor([tmp_path], jobs=2, progress=lambda done, total: steps.append((done, total)))
    assert [(d.file, d.complete) for d in parallel.diagnoses] == [
        (d.file, d.complete) for d in doctor([tmp_path]).diagnoses
    ]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert "pickle can run code" in parallel.diagnoses[-1].error and not parallel.complete
    assert isinstance(parallel, Checkup)


def test_intruders_are_new_leading_directions() -> None:
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(40, 40)).Q, torch.linalg.qr(torch.randn(60, 40)).Q
    weight = u @ torch.diag(torch.linspace(10, 1, 40)) @ v.T
    fresh = torch.linalg.qr(torch.randn(60, 1)).Q
    mixed = torch.nn.functional.normalize(torch.randn(40, 1), dim=0)
    found = intruders(weight, LowRank(fresh.T, mixed * 50), top=5)
    assert found.count == 1 and found.spike == pytest.approx(
        50 / float(torch.linalg.svdvals(weight)[4]), rel=1e-3
    )
    assert intruders(weight, LowRank(fresh.T, mixed * 1e-3), top=5).count == 0
    along = LowRank(v[:, :1].T, u[:, :1] * 50)
    assert intruders(weight, along, top=5).count == 0
    turned = intruders(weight.T.contiguous(), LowRank(mixed.T, fresh * 50), top=5)
    assert turned.count == 1


def test_intruders_with_the_shipped_base_at_hand(tmp_path: Path) -> None:
    folder = shipped_folder("glyph")
    assert folder is not None
    loud = adapter("glyph", 40.0, count=2)
    found = doctor([save(loud, tmp_path / "a.safetensors")], base_folder=folder).diagnoses[0]
    assert "intruders" in codes(found)
    assert "intruders" not in codes(only(tmp_path / "a.safetensors"))


@pytest.fixture
def runner() -> tuple[CliRunner, typer.Typer]:
    app = typer.Typer()
    app.command("doctor")(doctor_command)
    app.command("convert")(convert_command)
    return CliRunner(), app


def test_the_commands(runner: tuple[CliRunner, typer.Typer], tmp_path: Path) -> None:
    run, app = runner
    path = save(adapter("sd15"), tmp_path / "a.safetensors")
    good = run.invoke(app, ["doctor", str(path)])
    assert good.exit_code == 0 and "6 matched, 0 tensors unmatched" in good.output and "×2" in good.output
    told = json.loads(run.invoke(app, ["doctor", str(path), "--json"]).stdout)
    assert told["complete"] and told["files"][0]["report"]["base"] == "sd15"
    save_file(load_file(path) | {"lora_unet_x.alpha": torch.tensor(1.0)}, path)
    assert run.invoke(app, ["doctor", str(path)]).exit_code == 4
    assert run.invoke(app, ["doctor", str(path), "--allow-partial"]).exit_code == 0
    out = tmp_path / "b.safetensors"
    options = ["--dialect", "diffusers", "--rank", "1", "--dtype", "float16", "--allow-partial"]
    done = run.invoke(app, ["convert", str(path), str(out), *options])
    assert done.exit_code == 0, done.output
    assert "2 → 1" in done.output and "relative error in total: 0." in done.output
    assert "left out: lora_unet_x.alpha" in done.output
    assert inspect(out).dialect == "diffusers" and {row.rank for row in inspect(out).rows} == {1}
    told = json.loads(run.invoke(app, ["convert", str(out), str(path), "--json"]).stdout)
    assert told["error"] == 0 and told["dialect"] == "kohya"
