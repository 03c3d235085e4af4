"""``loracomp index`` and ``loracomp compose --auto`` with real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import Run
from known_adapters import CROSS, adapter, bank

from loracomp.adapter import Adapter
from loracomp.formats import load, save
from loracomp.library import SHIPPED

pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
pytestmark = pytest.mark.usefixtures("glyph_once")


def write_loras(folder: Path) -> Path:
    """Four adapters with names and licences, and a file that is none."""
    folder.mkdir()
    for seed, name in enumerate(("red dragon", "blue owl", "old clock", "tall ship")):
        made = adapter(seed, 2 + 2 * (seed % 2), CROSS)
        said = {"modelspec.license": "MIT" if seed % 2 else "CC0-1.0", "modelspec.title": name}
        save(Adapter(made.layers, "glyph", name, said), folder / f"{name.replace(' ', '-')}.safetensors")
    (folder / "torn.safetensors").write_bytes(b"no")
    return folder


def build(loracomp: Run, loras: Path, place: Path) -> Path:
    done = loracomp("index", "build", loras, "--index", place, "--jobs", 1, "--json")
    assert done.code == 0, done.err
    assert (done.json["added"], done.json["rows"], len(done.json["dead"])) == (4, 4, 1)
    return place


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that the tests here share and leave as they are."""
    return write_loras(tmp_path_factory.mktemp("shared") / "loras")


@pytest.fixture
def index(loracomp: Run, loras: Path) -> Path:
    """The index of these files, built by the first test that asks for it and only read by the tests."""
    place = loras.with_name("index")
    return place if place.exists() else build(loracomp, loras, place)


def test_building_again_changes_nothing_and_says_so(loracomp: Run, loras: Path, index: Path) -> None:
    done = loracomp("index", "build", loras, "--index", index)
    assert done.code == 0
    assert "5 files: 4 unchanged, 1 not readable" in done.out
    assert "torn.safetensors" in done.out
    facts = loracomp("index", "stats", "--index", index, "--json").json
    assert (facts["rows"], facts["bases"], facts["engine"]) == (4, {"glyph": 4}, "lance")
    assert list(facts["not_readable"]) == [str(loras / "torn.safetensors")]


def test_a_build_of_bad_files_alone_is_code_4(loracomp: Run, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.safetensors").write_bytes(b"no")
    assert loracomp("index", "build", tmp_path / "bad", "--index", tmp_path / "i").code == 4
    assert loracomp("index", "build", tmp_path / "none", "--index", tmp_path / "i").code == 2


def test_searches_by_words_filters_and_likeness(loracomp: Run, index: Path) -> None:
    found = loracomp("index", "search", "a dragon", "--index", index, "--json")
    assert found.code == 0, found.err
    assert found.json["hits"][0]["name"] == "red-dragon"
    assert set(found.json["used"]) == {"hears", "learned", "words"}
    weights = loracomp("index", "search", "a dragon", "--index", index, "--weights-only", "--json")
    assert weights.json["used"] == ["learned", "hears"]
    held = loracomp("index", "search", "owl", "--index", index, "--licence", "CC0-1.0", "--json")
    assert {hit["licence"] for hit in held.json["hits"]} == {"CC0-1.0"}
    small = loracomp("index", "search", "owl", "--index", index, "--where", "rank <= 2", "-n", 1, "--json")
    assert [hit["rank"] for hit in small.json["hits"]] == [2]
    none = loracomp("index", "search", "owl", "--index", index, "--where", "rank > 99")
    assert none.code == 1
    like = loracomp("index", "search", "--like", "blue-owl", "--index", index, "--explain")
    assert "update_rank 1" in like.out
    assert "blue-owl" not in like.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "one of them"),
        (("x", "--like", "y"), 2, "one of them"),
        (("x", "--where", "rank <"), 2, "a value"),
        (("--like", "nobody"), 2, "no such adapter"),
        (("--image", "nothing.png"), 2, "not a picture"),
    ],
)
def test_searches_that_cannot_be_understood(
    loracomp: Run, index: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = loracomp("index", "search", *arguments, "--index", index)
    assert done.code == code
    assert says in done.line


def test_a_picture_is_searched_for_by_its_words_too(loracomp: Run, index: Path) -> None:
    pytest.importorskip("open_clip", reason="needs open_clip; pip install 'loracomp[judge]'")
    done = loracomp("index", "search", "--image", SHIPPED / "watermelon.png", "--index", index, "--json")
    assert done.code == 0, done.err
    assert "searched for by the words 'a" in done.json["notes"][0]
    assert done.json["hits"]


def test_rows_are_shown_removed_and_exported(loracomp: Run, tmp_path: Path) -> None:
    loras = write_loras(tmp_path / "loras")
    index = build(loracomp, loras, tmp_path / "index")
    row = loracomp("index", "show", "old-clock", "--index", index, "--json").json
    assert (row["base"], row["licence"], row["rank"]) == ("glyph", "CC0-1.0", 2)
    out = tmp_path / "all.parquet"
    assert loracomp("index", "export", out, "--index", index, "--json").json["rows"] == 4
    assert out.stat().st_size > 1000
    assert loracomp("index", "remove", "old-clock", "--index", index, "--json").json["removed"] == [row["id"]]
    (loras / "tall-ship.safetensors").unlink()
    assert len(loracomp("index", "remove", "--missing", "--index", index, "--json").json["removed"]) == 1
    assert loracomp("index", "remove", "--missing", "--index", index).code == 1
    assert loracomp("index", "remove", "--index", index).code == 2
    names = loracomp("index", "search", "clock ship owl dragon", "--index", index, "--json").json["hits"]
    assert {hit["name"] for hit in names} == {"red-dragon", "blue-owl"}


def test_there_has_to_be_an_index(loracomp: Run, tmp_path: Path) -> None:
    done = loracomp("index", "search", "x", "--index", tmp_path / "no")
    assert done.code == 4
    assert "loracomp index build" in done.line


def test_auto_chooses_says_why_and_leaves_the_rest_to_the_base(
    loracomp: Run, index: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    common = ("--index", index, "--steps", 1, "--seed", 1, "--size", 64)
    done = loracomp("compose", "a dragon and quantum foam", "--auto", *common, "--out", out, "--json")
    assert done.code == 0, done.err
    recipe = done.json["images"][0]["recipe"]
    assert [use["name"] for use in recipe["uses"]] == ["red-dragon"]
    assert [chosen["name"] for chosen in done.json["auto"]["adapters"]] == ["red-dragon"]
    assert list(done.json["auto"]["left"]) == ["quantum foam"]
    alone = loracomp("compose", "quantum foam", "--auto", *common, "--out", out)
    assert alone.code == 0
    assert "the base draws alone" in alone.err
    strict = loracomp("compose", "quantum foam", "--auto-strict", *common, "--out", out)
    assert strict.code == 1
    assert "no adapter" in strict.line
    assert loracomp("compose", "x", "--auto", "--lora", "mono", *common, "--out", out).code == 2


def test_neighbours_become_an_adapter_or_a_refusal(loracomp: Run, index: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    done = loracomp("index", "synthesize", "an owl", "--index", index, "--out", out, "--json")
    if done.code == 2:
        assert "no more in common" in done.line or "no more in common" in json.loads(done.err)["error"]
    else:
        assert done.code == 0
        assert load(out).base == "glyph"
        assert sum(done.json["weights"]) == pytest.approx(1.0)


def test_probes_of_the_shipped_base_are_made_once(index: Path) -> None:
    from loracomp.retrieval.bank import load_bank

    made = load_bank(index / "banks" / "glyph.safetensors")
    assert made.states.shape == bank().states.shape
    assert made.digest != bank().digest
