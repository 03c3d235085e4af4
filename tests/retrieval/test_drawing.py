"""Pictures of what adapters draw: right, kept, and never drawn twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from artists import SHAPE, tiny_artist
from commandline import Run, command_line
from known_adapters import CROSS, adapter, bank
from safetensors.torch import load
from safetensors.torch import save as to_bytes

from loracomp.adapter import Adapter
from loracomp.alone import Alone
from loracomp.formats import save
from loracomp.retrieval.building import build, remove
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.drawing import draw, undrawn
from loracomp.retrieval.drawn import SEED, draw_probes, strip
from loracomp.retrieval.encoding import encode_adapter
from loracomp.retrieval.making import was_drawn
from loracomp.retrieval.shards import FeatureStore, pack, unpack


class Painter:
    """An artist who paints each adapter's size and the seed, and counts what it was asked for."""

    base = "glyph"
    batch = 32

    def __init__(self, stop_after: int = 1000) -> None:
        self.asked: list[str] = []
        self.left = stop_after

    def plain(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        return [self._painted(0, seed) for seed in seeds]

    def __call__(
        self, adapters: Sequence[Adapter], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Any]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        if any(lora.name.startswith("burst") for lora in adapters):
            raise FloatingPointError("images with values that are not finite")
        self.asked += [lora.name for lora in adapters]
        shade = [int(sum(layer.up.abs().sum() for layer in lora.layers.values())) % 251 for lora in adapters]
        return [self._painted(s, seed) for s in shade for seed in seeds]

    def _painted(self, shade: int, seed: int) -> Any:
        from PIL import Image

        return Image.new("RGB", (128, 128), (shade, seed - SEED, 7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five adapters."""
    place = tmp_path / "loras"
    place.mkdir()
    for seed in range(5):
        save(adapter(seed, suffixes=CROSS), place / f"lora{seed}.safetensors")
    return place


@pytest.fixture
def collection(folder: Path) -> Iterator[Collection]:
    """Their collection, with rows to search."""
    pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
    made = Collection(folder.with_name("index"), create=True)
    (made.folder / "banks").mkdir()
    bank().save(made.folder / "banks" / "glyph.safetensors")
    build([folder], made)
    yield made
    made.close()


def drawn_rows(collection: Collection) -> list[str]:
    return sorted(row["name"] for row in collection.index.scan() if was_drawn(row))


def test_pictures_go_through_shards_beside_rows_without(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(0)
    rows = [encode_adapter(adapter(seed, suffixes=CROSS)) for seed in range(3)]
    images = torch.randint(0, 256, (2, *SHAPE), generator=noise, dtype=torch.uint8)
    mixed = [replace(rows[0], drawn=images[0]), rows[1], replace(rows[2], drawn=images[1])]
    back = unpack(load(to_bytes(pack(mixed))))
    assert [row.drawn is None for row in back] == [False, True, False]
    for place, image in ((0, images[0]), (2, images[1])):
        found = back[place].drawn
        assert found is not None
        assert torch.equal(found, image)
    assert "drawn.rows" not in pack(rows), "shards without pictures are as they ever were"
    assert all(row.drawn is None for row in unpack(pack(rows)))


def test_everything_is_drawn_once_and_rows_are_renewed(collection: Collection) -> None:
    before = {row["id"]: row for row in collection.index.scan()}
    assert len(undrawn(collection)["glyph"]) == 5
    steps: list[tuple[int, int]] = []
    artist = Painter()
    report = draw(collection, artist, group=2, progress=lambda *told: steps.append(told))
    assert (report.drawn, report.failed, steps) == (5, {}, [(2, 5), (4, 5), (5, 5)])
    assert sorted(artist.asked) == [f"lora{seed}" for seed in range(5)]
    assert drawn_rows(collection) == sorted(artist.asked)
    after = {row["id"]: row for row in collection.index.scan()}
    assert {id_: {**row, "encoder": ""} for id_, row in after.items()} == {
        id_: {**row, "encoder": ""} for id_, row in before.items()
    }
    assert (draw(collection, artist).drawn, undrawn(collection)) == (0, {})
    assert len(artist.asked) == 5
    assert build([collection.folder.with_name("loras")], collection).renewed == 0


def test_pictures_are_those_of_their_adapter_whoever_reads_them(collection: Collection) -> None:
    draw(collection, Painter(), group=3)
    again = Collection(collection.folder)
    ids = {row["name"]: row["id"] for row in again.index.scan()}
    for seed in range(5):
        lora = adapter(seed, suffixes=CROSS)
        wanted = draw_probes(Painter(), [lora])[0]
        found = again.pictures(ids[f"lora{seed}"])
        assert found is not None
        assert torch.equal(found, wanted)
    assert again.pictures("none") is None
    for _, rows in again.store.rows():
        for item in rows:
            assert item.features.drawn is not None
            fresh = encode_adapter(adapter(int(item.facts.name[-1]), suffixes=CROSS), bank())
            assert torch.equal(item.features.sketch, fresh.sketch), "the other features stay as they were"
            assert item.features.text is not None
    assert strip(wanted).size == (8 * 64, 64)
    assert strip(wanted).getpixel((3 * 64, 5)) == tuple(wanted[3, :, 5, 0].tolist())
    again.close()


def test_what_stops_it_between_groups_loses_nothing(collection: Collection) -> None:
    acknowledged = 0

    def told(done: int, total: int) -> None:
        nonlocal acknowledged
        acknowledged = done

    with pytest.raises(KeyboardInterrupt):
        draw(collection, Painter(stop_after=2), group=2, progress=told)
    collection.close()
    again = Collection(collection.folder)
    assert acknowledged == len(again.store.pictures()) == len(drawn_rows(again)) == 4
    rest = Painter()
    assert draw(again, rest).drawn == 1
    assert len(rest.asked) == 1
    again.close()


def test_a_kill_between_groups_loses_nothing(folder: Path, tmp_path: Path) -> None:
    bare = Collection(tmp_path / "bare", create=True, indexed=False)
    build([folder], bare)
    paths = [str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, __file__, bare.folder], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["2", "4"]), done.stderr
    again = Collection(bare.folder, indexed=False)
    assert len(again.store.pictures()) == 4
    rest = Painter()
    assert draw(again, rest, group=2).drawn == len(rest.asked) == 1


def killed(folder: Path) -> None:
    """Draws in groups of two, says how many are done, and kills its process after the second."""

    def told(done: int, total: int) -> None:
        print(done, flush=True)
        if done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    draw(Collection(folder, indexed=False), Painter(), group=2, progress=told)


def test_rows_that_were_cut_off_after_their_pictures_are_renewed(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if killed after the shard reached the disk and before the index did."""

    def killed(rows: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collection.index, "upsert", killed)
        draw(collection, Painter(), group=2)
    assert (len(collection.store.pictures()), drawn_rows(collection)) == (2, [])
    assert build([collection.folder.with_name("loras")], collection).renewed == 2
    assert len(drawn_rows(collection)) == 2
    rest = Painter()
    assert draw(collection, rest).drawn == len(rest.asked) == 3


def test_one_that_fails_is_reported_and_stops_no_other(collection: Collection, folder: Path) -> None:
    save(adapter(8, suffixes=CROSS), folder / "burst.safetensors")
    build([folder], collection)
    (folder / "lora1.safetensors").write_bytes(b"torn")
    (folder / "lora2.safetensors").unlink()
    report = draw(collection, Painter())
    assert report.drawn == 3
    why = {Path(path).stem: reason for path, reason in report.failed.items()}
    assert set(why) == {"burst", "lora1", "lora2"}
    assert "not finite" in why["burst"]
    assert "gone or changed" in why["lora1"]
    assert all(str(folder) in reason and "\n" not in reason for reason in why.values())
    assert draw(collection, Painter()).failed.keys() == report.failed.keys(), "tried again"


def test_an_adapter_of_another_architecture_spoils_no_group(folder: Path, collection: Collection) -> None:
    class Narrow(Alone):
        base = "glyph"

    artist = tiny_artist()
    report = draw(collection, Narrow(artist.pipe, None, 32, artist.settings))
    assert (report.drawn, len(report.failed)) == (0, 5)
    assert all("base" in why for why in report.failed.values())


def test_pictures_outlive_encoding_anew_and_removal(collection: Collection, folder: Path) -> None:
    draw(collection, Painter())
    os.utime(folder / "lora0.safetensors")
    assert build([folder], collection).renewed == 1
    gone = collection.find("lora3")["id"]
    remove(collection, [gone])
    assert undrawn(collection) == {}
    save(adapter(7, suffixes=CROSS), folder / "new.safetensors")
    build([folder], collection, retry=True)
    assert len(drawn_rows(collection)) == 5
    assert list(undrawn(collection)) == ["glyph"]
    artist = Painter()
    draw(collection, artist)
    assert artist.asked == ["new"]


def test_a_copy_stands_in_for_a_file_that_is_gone(collection: Collection, folder: Path) -> None:
    (folder / "copy.safetensors").write_bytes((folder / "lora4.safetensors").read_bytes())
    build([folder], collection)
    (folder / "lora4.safetensors").unlink()
    assert draw(collection, Painter()).failed == {}


def test_features_alone_are_drawn_for_without_a_database(folder: Path, tmp_path: Path) -> None:
    bare = Collection(tmp_path / "bare", create=True, indexed=False)
    build([folder], bare)
    assert draw(bare, Painter(), group=2).drawn == 5
    store = FeatureStore(bare.folder / "features")
    assert len(store.pictures()) == 5
    assert len(store.pictures(["none"])) == 0


@pytest.fixture
def loracomp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line."""
    return command_line(monkeypatch, capsys)


if __name__ == "__main__":
    killed(Path(sys.argv[1]))
