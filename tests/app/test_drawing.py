"""The app on glyph, over HTTP: draw, watch, cancel, restore, compare, search, advise."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import adapterfiles
import pytest
from PIL import Image
from starlette.testclient import TestClient

from loracomp.app.server import make_server
from loracomp.app.settings import Limits, Settings
from loracomp.app.state import App

Wait = Callable[..., Any]
QUICK = {"steps": 3, "width": 64, "height": 64, "preview": False}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("app")
    made = App(Settings(data=folder / "data", dtype="fp32", device="cpu", limits=Limits(cells=6)))
    with TestClient(make_server(made, page=False), base_url="http://localhost/api/v1/") as opened:
        assert made.engine.wait(120)
        made.jobs.wait(0.1)
        while made.library.scanned == 0 or made.library.scanning:
            made.jobs.wait(0.1)
        yield opened


def ids(client: TestClient) -> dict[str, str]:
    rows = client.get("adapters", params={"size": 200}).json()["rows"]
    return {row["name"]: row["id"] for row in rows}


def finished(client: TestClient, id_: str, wait: Wait) -> dict[str, Any]:
    def over() -> Any:
        job = client.get(f"jobs/{id_}").json()
        return job["state"] not in ("queued", "running") and job

    found: dict[str, Any] = wait(over)
    return found


def drawn(client: TestClient, request: dict[str, Any], wait: Wait) -> tuple[str, ...]:
    answer = client.post("jobs/generate", json=request)
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json()["id"], wait)
    assert (job["state"], job["error"]) == ("done", "")
    return tuple(job["result"]["images"])


def png(client: TestClient, image: str) -> bytes:
    answer = client.get(f"history/{image}/image")
    assert answer.headers["content-type"] == "image/png"
    return answer.content


def test_an_image_with_two_adapters_carries_its_settings(client: TestClient, wait: Wait) -> None:
    known = ids(client)
    uses = [
        {"id": known["mono"], "weight": 0.8},
        {"id": known["watermelon"], "curve": {"points": [[0, 0], [0.5, 1]], "shape": "constant"}},
    ]
    request = {**QUICK, "prompt": "a watermelon emoji", "adapters": uses, "method": "switch", "batch": 2}
    images = drawn(client, request, wait)
    assert len(images) == 2
    first = client.get(f"history/{images[0]}").json()
    assert [use["name"] for use in first["recipe"]["uses"]] == ["mono", "watermelon"]
    assert [use["source"] for use in first["recipe"]["uses"]] == ["mono", "watermelon"]
    assert (first["recipe"]["method"], first["width"]) == ("switch", 64)
    said = Image.open(io.BytesIO(png(client, images[0]))).info
    assert {"parameters", "loracomp"} <= set(said)
    assert "/" not in said["loracomp"].replace("1/", "")
    assert client.get(f"history/{images[1]}").json()["index"] == 1


def test_restored_settings_draw_the_same_bytes(client: TestClient, wait: Wait) -> None:
    known = ids(client)
    uses = [{"id": known["pixel"], "curve": {"points": [[0, 1], [1, 0.2]]}, "settings": "up=0.5"}]
    request = {**QUICK, "prompt": "a red apple <lora:violin:0.4>", "adapters": uses, "batch": 2}
    images = drawn(client, request, wait)
    before = [png(client, image) for image in images]
    assert before[0] != before[1]
    by_id = client.get(f"history/{images[1]}/settings").json()
    sent = client.post("uploads", params={"kind": "picture", "name": "a.png"}, content=before[1]).json()
    by_file = client.post("history/restore", json={"upload": sent["id"]}).json()
    assert by_file["missing"] == [] == by_id["missing"]
    assert by_file["index"] == by_id["index"] == 1
    for restored in (by_id, by_file):
        again = drawn(client, {**restored["request"], "preview": True}, wait)
        assert [png(client, image) for image in again] == before


def test_a_scheduler_of_ones_own_leaves_no_trace(client: TestClient, wait: Wait) -> None:
    request = {**QUICK, "prompt": "a tree", "seed": 5}
    (first,) = drawn(client, request, wait)
    (other,) = drawn(client, {**request, "scheduler": "euler"}, wait)
    (second,) = drawn(client, request, wait)
    assert png(client, first) == png(client, second) != png(client, other)


def test_previews_change_nothing_and_are_seen(client: TestClient, wait: Wait) -> None:
    request = {**QUICK, "prompt": "a house", "seed": 3, "steps": 16}
    id_ = client.post("jobs/generate", json={**request, "preview": True}).json()["id"]
    seen = wait(lambda: (answer := client.get(f"jobs/{id_}/preview")).status_code == 200 and answer)
    assert Image.open(io.BytesIO(seen.content)).format == "WEBP"
    job = finished(client, id_, wait)
    assert client.get(f"jobs/{id_}/preview").status_code == 404
    (plain,) = drawn(client, request, wait)
    assert png(client, plain) == png(client, job["result"]["images"][0])


def test_cancel_stops_within_a_step(client: TestClient, wait: Wait) -> None:
    id_ = client.post("jobs/generate", json={**QUICK, "prompt": "a cat", "steps": 150}).json()["id"]
    at = wait(lambda: client.get(f"jobs/{id_}").json()["step"])
    client.post(f"jobs/{id_}/cancel")
    job = finished(client, id_, wait)
    assert job["state"] == "canceled"
    assert job["step"] < at + 50
    assert job["result"] == {}


def test_each_cell_of_a_grid_uses_its_own_setting(client: TestClient, wait: Wait) -> None:
    known = ids(client)
    request = {
        **QUICK,
        "prompt": "a bicycle",
        "seed": 2,
        "adapters": [{"id": known["mono"]}, {"id": known["bicycle"]}],
    }
    grid = {
        "request": request,
        "x": {"field": "weight", "values": [0, 1.5], "adapter": known["bicycle"]},
        "y": {"field": "method", "values": ["merge", "switch"]},
        "plain": True,
    }
    job = finished(client, client.post("jobs/grid", json=grid).json()["id"], wait)
    assert (job["state"], job["error"]) == ("done", "")
    cells = job["result"]["cells"]
    assert [(cell["x"], cell["y"]) for cell in cells] == [(x, y) for y in range(2) for x in range(2)]
    hashes = set()
    for cell in cells:
        recipe = client.get(f"history/{cell['id']}").json()["recipe"]
        weights = [program["weights"] for program in recipe["programs"]] or [
            [u["weight"] for u in recipe["uses"]]
        ]
        assert weights == [[1.0, grid["x"]["values"][cell["x"]]]]  # type: ignore[index]
        assert recipe["method"] == grid["y"]["values"][cell["y"]]  # type: ignore[index]
        pixels = Image.open(io.BytesIO(png(client, cell["id"]))).tobytes()
        hashes.add(hashlib.sha256(pixels).hexdigest())
    assert len(hashes) == len(cells)
    sheet = Image.open(io.BytesIO(client.get(f"sheets/{job['result']['sheets'][0]}").content))
    assert sheet.width >= 2 * 64
    plain = client.get(f"history/{job['result']['plain']}").json()
    assert plain["recipe"]["uses"] == []


def test_grids_that_make_no_sense_are_refused(client: TestClient) -> None:
    request = {**QUICK, "prompt": "a bicycle"}
    for axes, said in (
        ({"x": {"field": "weight", "values": [0, 1]}}, "no adapter to change"),
        ({"x": {"field": "steps", "values": [2, "many"]}}, "steps 'many'"),
        ({"x": {"field": "seed", "values": list(range(7))}}, "7 cells"),
        ({"x": {"field": "seed", "values": [1]}, "y": {"field": "seed", "values": [2]}}, "the same thing"),
        ({"x": {"field": "steps", "values": [151]}}, "151 steps"),
    ):
        answer = client.post("jobs/grid", json={"request": request, **axes})
        assert answer.status_code in (400, 429)
        assert said in answer.json()["error"]


def test_mistakes_are_told_before_anything_is_queued(client: TestClient) -> None:
    for request, status, said in (
        ({"prompt": "  "}, 422, "no prompt"),
        ({"prompt": "a <lora:nobody:1>"}, 404, "nobody"),
        ({"prompt": "a", "adapters": [{"id": "x"}]}, 404, "no such adapter"),
        ({"prompt": "a", "batch": 17}, 429, "17 images"),
        ({"prompt": "a", "width": 4096}, 429, "4096 pixels"),
        ({"prompt": "a", "guidance": "much"}, 422, "guidance"),
    ):
        answer = client.post("jobs/generate", json=request)
        assert answer.status_code == status, answer.text
        assert said in answer.json()["error"]


def test_advice_and_auto_mode_speak_of_ids(client: TestClient, wait: Wait) -> None:
    known = ids(client)
    two = [{"id": known["mono"]}, {"id": known["watermelon"]}]
    found = client.post("diagnose", json={"adapters": two}).json()
    assert found["adapters"] == ["mono", "watermelon"]
    assert found["advice"]["method"] and found["advice"]["reason"]
    assert "not built" in client.post("search", json={"text": "pixel"}).json()["notes"][0]
    refused = client.post("auto", json={"prompt": "a watermelon in mono style"})
    assert (refused.status_code, "it is being built now" in refused.text) == (400, True)
    job = finished(client, client.post("jobs/index").json()["id"], wait)
    assert (job["state"], job["error"]) == ("done", "")
    wait(lambda: client.post("search", json={"like": known["mono"]}).status_code == 200)
    chosen = client.post("auto", json={"prompt": "a watermelon in mono style"}).json()
    assert {row["name"] for row in chosen["adapters"]} == {"watermelon", "mono"}
    assert {use["id"] for use in chosen["request"]["adapters"]} == {known["watermelon"], known["mono"]}
    assert len(chosen["lines"]) >= 3
    like = client.post("search", json={"like": known["mono"], "count": 3}).json()
    assert 2 <= len(like["rows"]) <= 3
    assert known["mono"] not in [row["id"] for row in like["rows"]]


def test_an_import_gets_a_picture_at_once(client: TestClient, wait: Wait, tmp_path: Path) -> None:
    file = adapterfiles.write(tmp_path, 1)[0]
    sent = client.post("uploads", params={"kind": "adapter", "name": file.name}, content=file.read_bytes())
    id_ = client.post("adapters/import", json={"upload": sent.json()["id"]}).json()["id"]
    wait(lambda: client.get(f"adapters/{id_}/thumbnail").status_code == 200)
    with Image.open(io.BytesIO(client.get(f"adapters/{id_}/thumbnail").content)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (128, 128))


def test_recipes_travel_by_content(client: TestClient, wait: Wait) -> None:
    known = ids(client)
    request = {**QUICK, "prompt": "a tree", "seed": 9, "adapters": [{"id": known["fluent"], "weight": 0.5}]}
    drawn(client, request, wait)
    saved = client.post("recipes", json={"name": "My tree", "request": request, "note": "green"}).json()
    exported = client.get(f"recipes/{saved['id']}/export").json()
    assert exported["adapters"][0]["name"] == "fluent"
    assert len(exported["adapters"][0]["digest"]) == 64
    client.delete(f"recipes/{saved['id']}")
    assert client.get("recipes").json() == []
    exported["adapters"][0]["use"]["id"] = "of another app"
    taken = client.post("recipes/import", json=exported).json()
    assert (taken["name"], taken["note"], taken["missing"]) == ("My tree", "green", [])
    assert taken["request"] == saved["request"]
    exported["adapters"][0] |= {"name": "gone", "digest": "0" * 64, "hash": ""}
    assert client.post("recipes/import", json=exported).json()["missing"] == ["gone"]
    assert client.post("recipes/import", json={}).status_code == 422


def test_the_interface_is_documented(client: TestClient) -> None:
    table = client.get("openapi.json").json()
    deeds = [deed for path in table["paths"].values() for deed in path.values()]
    assert len(deeds) > 50
    assert all(deed["description"] and deed["tags"] for deed in deeds)
    page = client.get("docs").text
    assert all(path in page for path in table["paths"])
    assert "What to draw" in page
    assert "http://" not in page and "https://" not in page
