"""The app on a base with an architecture of its own, in a folder: gallery, images, training, conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from tiny import layer_table, random_adapter, tiny_pipeline

from loracomp.app.ground import CUSTOM, Ground
from loracomp.app.server import make_server
from loracomp.app.settings import Settings
from loracomp.app.state import App
from loracomp.formats import load, save
from loracomp.lowrank import distance, norm

Wait = Callable[..., Any]
QUICK = {"prompt": "paper", "steps": 2, "width": 32, "height": 32, "seed": 7, "preview": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion with layers of sizes that no known base has, and a library of two files."""
    made = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    pipe = tiny_pipeline("sd15")
    pipe.save_pretrained(made / "base")
    (made / "loras").mkdir()
    for kind in ("sd15", "sd3"):
        table = layer_table(tiny_pipeline(kind))
        save(
            random_adapter(table, size=0.5, name=kind), made / "loras" / f"{kind}.safetensors", modules=table
        )
    return made


def settings(folder: Path, data: Path, base: str = "") -> Settings:
    own = str(folder / "base")
    return Settings(data=data, library=(folder / "loras",), base=base or own, device="cpu")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    made = App(settings(folder, folder / "data"))
    with TestClient(make_server(made, page=False), base_url="http://localhost/api/v1/") as opened:
        assert made.engine.wait(120)
        while made.library.scanned == 0 or made.library.scanning:
            made.jobs.wait(0.1)
        yield opened


def finished(client: TestClient, id_: str, wait: Wait) -> dict[str, Any]:
    def over() -> Any:
        job = client.get(f"jobs/{id_}").json()
        return job["state"] not in ("queued", "running") and job

    found: dict[str, Any] = wait(over, 120)
    assert (found["state"], found["error"]) == ("done", "")
    return found


def row_of(client: TestClient, name: str) -> dict[str, Any]:
    rows = client.get("adapters", params={"size": 200}).json()["rows"]
    found: dict[str, Any] = next(row for row in rows if row["name"] == name)
    return found


def test_the_gallery_knows_what_fits(client: TestClient) -> None:
    fitting = row_of(client, "sd15")
    assert (fitting["base"], fitting["error"]) == (CUSTOM, "")
    assert fitting["rank"] > 0
    assert row_of(client, "sd3")["error"]
    rows = client.get("adapters", params={"compatible_with": CUSTOM}).json()["rows"]
    assert [row["name"] for row in rows] == ["sd15"]
    assert row_of(client, "mono")["base"] == "glyph"
    report = client.get(f"adapters/{fitting['id']}/report").json()
    assert report["complete"] and not report["report"]["unmatched"]


def test_images_are_drawn_with_it(client: TestClient, wait: Wait) -> None:
    images = []
    for weight in (0, 1):
        uses = [{"id": row_of(client, "sd15")["id"], "weight": weight}]
        id_ = client.post("jobs/generate", json={**QUICK, "adapters": uses}).json()["id"]
        (image,) = finished(client, id_, wait)["result"]["images"]
        images.append(client.get(f"history/{image}/image").content)
    assert images[0] != images[1]
    wait(lambda: row_of(client, "sd15")["thumbnail"], 120)


def test_it_is_converted_and_examined(client: TestClient, folder: Path, wait: Wait) -> None:
    first = row_of(client, "sd15")
    asked = {"name": "twin", "dialect": "peft"}
    id_ = client.post(f"adapters/{first['id']}/convert", json=asked).json()["id"]
    made = finished(client, id_, wait)["result"]["adapter"]
    assert client.get(f"adapters/{made}").json()["base"] == CUSTOM
    table = layer_table(tiny_pipeline("sd15"))
    before = load(folder / "loras" / "sd15.safetensors", modules=table)
    after = load(folder / "loras" / "twin.safetensors", modules=table)
    for path, layer in before.layers.items():
        assert distance(layer, after.layers[path]) <= 1e-5 * norm(layer)
    raw = (folder / "loras" / "twin.safetensors").read_bytes()
    sent = client.post("uploads", params={"kind": "adapter", "name": "new.safetensors"}, content=raw).json()
    taken = client.post("adapters/import", json={"upload": sent["id"]})
    assert taken.status_code == 201, taken.text
    assert client.get(f"adapters/{taken.json()['id']}").json()["base"] == CUSTOM
    checkup = finished(client, client.post("adapters/doctor").json()["id"], wait)["result"]
    pairs = [set(group) for group in checkup["duplicates"]]
    assert any({made, taken.json()["id"]} <= group for group in pairs)


def test_one_is_trained_for_it(client: TestClient, tmp_path: Path, wait: Wait) -> None:
    data = client.post("datasets", json={"name": "papers"}).json()["id"]
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), color).save(tmp_path / "one.png")
        sent = client.post(
            "uploads",
            params={"kind": "picture", "name": f"{number}.png"},
            content=(tmp_path / "one.png").read_bytes(),
        ).json()
        added = client.post(f"datasets/{data}/pictures", json={"upload": sent["id"], "caption": color})
        assert added.status_code < 300, added.text
    more = {"resolution": 32, "sample_count": 0}
    asked = {"data": data, "name": "paper", "trigger": "paper", "steps": 2, "rank": 1, "batch": 1}
    answer = client.post("jobs/train", json={**asked, "settings": more})
    assert answer.status_code == 202, answer.text
    made = finished(client, answer.json()["id"], wait)["result"]["adapter"]
    assert client.get(f"adapters/{made}").json()["base"] == CUSTOM


def test_another_base_reads_the_files_anew(folder: Path, tmp_path: Path) -> None:
    seen = []
    for base in ("", "glyph", "glyph", ""):
        made = App(settings(folder, tmp_path / "data", base))
        opened = made.library.scan()
        found = made.database.row("SELECT base FROM adapters WHERE path LIKE '%/sd15.safetensors'")
        seen.append((opened > 0, found["base"] if found else None))
        made.stop()
    assert seen == [(True, CUSTOM), (True, ""), (False, ""), (True, CUSTOM)]


def test_a_ground_is_known_by_name_at_once_and_by_its_layers_later(folder: Path) -> None:
    assert Ground("glyph").name == "glyph"
    own = Ground(str(folder / "base"))
    assert own.name == ""
    assert own.modules() == layer_table(tiny_pipeline("sd15"))
    assert own.name == CUSTOM
    empty = Ground(str(folder / "loras"))
    assert (empty.modules(), empty.name) == (None, "")
