"""Building: whatever happens to files and to the build, the index ends up as it should be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from known_adapters import CROSS, adapter, bank, spoken
from safetensors.torch import load_file, save_file

from loracomp.errors import FormatError, ResourceError, UsageError
from loracomp.formats import save
from loracomp.retrieval import lance
from loracomp.retrieval.building import build, remove
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.filters import parse
from loracomp.retrieval.index import open_index
from loracomp.retrieval.search import Searcher

pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """A folder with six adapters, one of them nested."""
    folder = tmp_path / "loras"
    (folder / "more").mkdir(parents=True)
    for seed in range(6):
        place = folder / "more" if seed == 5 else folder
        save(adapter(seed, suffixes=CROSS), place / f"lora{seed}.safetensors")
    return folder


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """An empty collection with glyph's probes, no text encoder needed."""
    made = Collection(tmp_path / "index", create=True)
    (made.folder / "banks").mkdir()
    bank().save(made.folder / "banks" / "glyph.safetensors")
    yield made
    made.close()


def names(collection: Collection) -> list[str]:
    return sorted(row["name"] for row in collection.index.scan())


def test_a_second_build_opens_no_file(loras: Path, collection: Collection) -> None:
    first = build([loras], collection)
    assert (first.added, first.rows, first.dead) == (6, 6, {})
    for path in loras.rglob("*.safetensors"):
        stamp = os.stat(path)
        path.write_bytes(b"x" * stamp.st_size)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again = build([loras], collection)
    assert (again.added, again.unchanged, again.rows, again.dead) == (0, 6, 6, {})
    assert again.version == first.version


def test_new_changed_copied_and_lost_files(loras: Path, collection: Collection) -> None:
    build([loras], collection)
    save(adapter(7, suffixes=CROSS), loras / "new.safetensors")
    save(adapter(8, suffixes=CROSS), loras / "lora0.safetensors")
    (loras / "copy.safetensors").write_bytes((loras / "lora1.safetensors").read_bytes())
    (loras / "lora2.safetensors").unlink()
    report = build([loras], collection)
    assert (report.added, report.copies, report.unchanged) == (2, 1, 4)
    assert names(collection) == ["lora0", "lora1", "lora2", "lora3", "lora4", "lora5", "new"]


def test_bad_files_are_dead_letters_with_reasons_and_tried_twice(loras: Path, collection: Collection) -> None:
    (loras / "torn.safetensors").write_bytes((loras / "lora1.safetensors").read_bytes()[:-9])
    (loras / "text.safetensors").write_text("no")
    nan = {key: values * float("nan") for key, values in load_file(loras / "lora1.safetensors").items()}
    save_file(nan, loras / "nan.safetensors")
    report = build([loras], collection)
    assert {Path(path).stem for path in report.dead} == {"torn", "text", "nan"}
    assert "NaN" in report.dead[str(loras / "nan.safetensors")]
    assert all(str(loras) in why for why in report.dead.values())
    build([loras], collection)
    attempts = {Path(seen.path).stem: seen.attempts for seen in collection.journal.dead()}
    assert attempts == {"torn": 2, "text": 2, "nan": 2}
    build([loras], collection)
    assert {seen.attempts for seen in collection.journal.dead()} == {2}
    assert build([loras], collection, retry=True).dead.keys() == report.dead.keys()
    assert {seen.attempts for seen in collection.journal.dead()} == {3}
    save(adapter(9, suffixes=CROSS), loras / "nan.safetensors")
    assert {Path(path).stem for path in build([loras], collection).dead} == {"torn", "text"}
    assert "nan" in names(collection)


def test_an_index_is_made_anew_from_the_shards_alone(
    loras: Path, collection: Collection, tmp_path: Path
) -> None:
    build([loras], collection)
    before = list(collection.index.scan())
    vectors = {row["id"]: row["v_hears"] for row in collection.index.get([row["id"] for row in before])}
    for path in loras.rglob("*.safetensors"):
        path.unlink()
    collection.index = open_index(str(tmp_path / "elsewhere"))
    assert collection.synchronize() == 6
    after = list(collection.index.scan())
    assert [{**row, "added": 0} for row in after] == [{**row, "added": 0} for row in before]
    for row in collection.index.get([row["id"] for row in after]):
        assert (row["v_hears"] == vectors[row["id"]]).all()
    assert collection.synchronize() == 0


def test_features_alone_need_no_database(
    loras: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    bare = Collection(collection.folder, indexed=False)
    report = build([loras], bare)
    assert (report.added, report.rows, report.dead) == (6, 0, {})
    assert build([loras], bare).unchanged == 6
    assert len(bare.store.latest()) == 6
    bare.close()
    monkeypatch.undo()
    assert build([loras], collection).rows == 6, "a later build adds the rows"


def test_rows_are_renewed_when_the_probes_change(loras: Path, collection: Collection) -> None:
    (collection.folder / "banks" / "glyph.safetensors").unlink()
    collection.__dict__["banks"] = {}
    collection.add_bank = lambda base, folder=None: None  # type: ignore[method-assign]
    assert build([loras], collection).added == 6
    assert not any(row["heard"] for row in collection.index.scan())
    collection.banks["glyph"] = bank()
    assert build([loras], collection).renewed == 6
    assert collection.fresh("glyph") == next(collection.index.scan())["encoder"]


def test_removed_adapters_stay_away_until_asked_for(loras: Path, collection: Collection) -> None:
    build([loras], collection)
    gone = collection.find("lora3")["id"]
    remove(collection, [gone])
    with pytest.raises(FormatError, match="not in the index"):
        remove(collection, [gone])
    assert "lora3" not in names(collection)
    report = build([loras], collection)
    assert "lora3" not in names(collection)
    assert "by hand" in report.dead[str(loras / "lora3.safetensors")]
    build([loras], collection, retry=True)
    assert "lora3" in names(collection)


def test_a_torn_last_line_of_the_journal_is_forgotten(loras: Path, collection: Collection) -> None:
    build([loras], collection)
    journal = collection.folder / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-40])
    again = Collection(collection.folder)
    assert len(again.journal.seen) == 5
    assert journal.read_bytes() == whole[: whole[:-1].rfind(b"\n") + 1]
    report = build([loras], again)
    assert (report.unchanged, report.rows) == (5, 6)
    assert journal.read_bytes().count(b"\n") == 6


def test_an_interruption_is_no_bad_file(
    loras: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loracomp.cli import InterruptedByUserError

    def interrupted(*parts: object, **options: object) -> None:
        raise InterruptedByUserError("interrupted")

    with monkeypatch.context() as patch, pytest.raises(InterruptedByUserError):
        patch.setattr("loracomp.retrieval.encoding.match", interrupted)
        build([loras], collection, jobs=1)
    assert collection.journal.dead() == []
    assert build([loras], collection).added == 6


def test_rows_of_another_version_are_made_anew_from_what_was_encoded(
    loras: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    build([loras], collection)
    before = sorted(row["id"] for row in collection.index.scan())
    collection.index.close()
    place = collection.folder / "lance"
    monkeypatch.setattr(lance, "_PACKED", "folded")
    with pytest.raises(FormatError, match="lance: rows of another version; delete this folder"):
        Collection(collection.folder)
    shutil.rmtree(place)
    again = Collection(collection.folder)
    assert build([loras], again).unchanged == 6
    assert sorted(row["id"] for row in again.index.scan()) == before


def test_two_builds_at_once_are_refused(loras: Path, collection: Collection) -> None:
    with collection.writing(), pytest.raises(ResourceError, match="another build"):
        build([loras], Collection(collection.folder))


def test_folders_that_are_no_index_are_refused(loras: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no index"):
        Collection(tmp_path / "nothing")
    with pytest.raises(UsageError, match="not empty"):
        Collection(loras, create=True)
    Collection(tmp_path / "made", create=True)
    with pytest.raises(UsageError, match="leave --server out"):
        Collection(tmp_path / "made", "postgresql://nowhere")
    (tmp_path / "made" / "collection.json").write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        Collection(tmp_path / "made")


def test_names_ids_and_paths_mean_one_adapter(loras: Path, collection: Collection) -> None:
    build([loras], collection)
    (loras / "copy").mkdir()
    save(adapter(11, suffixes=CROSS), loras / "copy" / "lora1.safetensors")
    build([loras], collection)
    row = collection.find("lora4")
    for what in (row["id"], row["id"][:10], row["path"]):
        assert collection.find(what)["id"] == row["id"]
    with pytest.raises(UsageError, match="2 adapters have that name"):
        collection.find("lora1")
    with pytest.raises(UsageError, match="no such adapter"):
        collection.find("lora99")


def test_a_planted_word_is_found_by_the_weights_alone(collection: Collection, tmp_path: Path) -> None:
    """Each adapter responds to one made-up word; the headers claim nothing."""
    from loracomp.adapter import Adapter
    from loracomp.lowrank import LowRank
    from loracomp.retrieval.sites import site_table

    folder = tmp_path / "planted"
    folder.mkdir()
    table, probes = site_table("glyph"), bank()
    words = ("quorf", "zibble", "mantro", "yexil")
    for number, word in enumerate(words):
        heard = probes.center(spoken([f"a {word}"]))[0]
        noise = torch.Generator().manual_seed(number)
        layers = {}
        for place, weight in probes.weights.items():
            up = torch.randn(len(weight), 2, generator=noise)
            down = torch.stack([heard / heard.norm(), torch.randn(256, generator=noise) / 64])
            layers[table.sites[place].path] = LowRank(down, up)
        save(Adapter(layers, "glyph", f"f{number}"), folder / f"f{number}.safetensors")
    build([folder], collection)
    searcher = Searcher(collection, states={"glyph": spoken})
    for number, word in enumerate(words):
        answer = searcher.text(f"a {word}", 4, words=False)
        assert answer.used == ("hears",)
        assert answer.hits[0].row["name"] == f"f{number}"
        assert answer.confidence > 0.9
        assert answer.hits[0].explain["hears"] > answer.hits[1].explain["hears"]
    assert searcher.text("an unheard-of thing", words=False).confidence < 0.9
    like = searcher.like("f2", where=parse("rank = 2"))
    assert {hit.row["name"] for hit in like.hits} == {"f0", "f1", "f3"}
    assert [hit.row["name"] for hit in searcher.like(str(folder / "f1.safetensors")).hits].count("f1") == 0


def test_a_build_survives_being_killed_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    for seed in range(16):
        save(adapter(seed, 2, suffixes=("attn1.to_q",)), folder / f"lora{seed}.safetensors")
    program = Path(__file__).with_name("killed_builds.py")
    bank().save(tmp_path / "bank.safetensors")
    done = subprocess.run(
        [sys.executable, program, folder, tmp_path / "index", "6", "1", tmp_path / "bank.safetensors"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout)
    killed, whole = (Collection(Path(places[name])) for name in ("index", "whole"))
    facts = [[{**row, "added": 0} for row in collection.index.scan()] for collection in (killed, whole)]
    assert facts[0] == facts[1]
    assert len(facts[0]) == 16
    assert len(killed.journal.seen) == 16


def test_a_table_whose_making_was_cut_off_is_made_again(loras: Path, collection: Collection) -> None:
    folder = collection.folder / "lance" / "adapters.lance"
    for path in sorted(folder.rglob("*.manifest")):
        path.unlink()
    again = Collection(collection.folder)
    assert build([loras], again).rows == 6
