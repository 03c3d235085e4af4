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
from commandline import Run, command_line
from known_adapters import CROSS, adapter, bank
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from tiny import random_adapter, shapes_of, tiny_pipeline
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.alone import Alone, open_alone
from loracomp.errors import FormatError, ResourceError
from loracomp.formats import save
from loracomp.library import SHIPPED
from loracomp.lowrank import LowRank
from loracomp.pipeline import layers_of
from loracomp.retrieval.building import build, remove
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.drawing import draw, undrawn
from loracomp.retrieval.drawn import SEED, WORDS, base_drawings, draw_probes, strip
from loracomp.retrieval.encoding import encode_adapter
from loracomp.retrieval.making import was_drawn
from loracomp.retrieval.shards import FeatureStore, pack, unpack

SHAPE = (len(WORDS), 3, 64, 64)
# Grey levels that the order of sums may move a picture by.
ROUNDING = 4


def tiny_artist(kind: str = "sd15", **settings: Any) -> Alone:
    return Alone(
        tiny_pipeline(kind),
        settings={"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32} | settings,
    )


def loras(kind: str, count: int, **options: Any) -> list[Adapter]:
    return [random_adapter(shapes_of(kind), seed=seed, size=0.3, **options) for seed in range(count)]


def apart(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_a_group_draws_what_each_draws_alone(kind: str) -> None:
    more = {"max_sequence_length": 16} if kind == "flux" else {}
    artist, found = tiny_artist(kind, **more), loras(kind, 3)
    fast = random_adapter(shapes_of(kind), seed=9, size=0.1)
    for one in (artist, replace(artist, accelerator=fast)):
        together = draw_probes(one, found)
        assert (together.shape, together.dtype) == ((3, *SHAPE), torch.uint8)
        for place, lora in enumerate(found):
            assert apart(together[place], draw_probes(one, [lora])[0]) <= ROUNDING
        assert apart(together[0], together[1]) > 10 * ROUNDING, "the adapters make a difference"


def test_batches_and_rank_make_no_difference_and_the_order_goes_with_the_adapters() -> None:
    artist = tiny_artist()
    found = [loras("sd15", 1, rank=2)[0], loras("sd15", 2)[1]]
    whole = draw_probes(artist, found)
    assert apart(whole, draw_probes(replace(artist, batch=3), found)) <= ROUNDING
    assert apart(whole.flip(0), draw_probes(artist, found[::-1])) <= ROUNDING
    assert draw_probes(artist, []).shape == (0, *SHAPE)


def test_strength_zero_draws_what_the_base_draws() -> None:
    import numpy as np
    from PIL import Image

    artist = tiny_artist()
    lora = loras("sd15", 1)[0]
    sources = [torch.Generator().manual_seed(SEED + place) for place in range(len(WORDS))]
    with torch.inference_mode():
        plain = artist.pipe(list(WORDS), generator=sources, **artist.settings).images
    wanted = [np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)) for image in plain]
    base = torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2)
    nothing, something = draw_probes(artist, [lora.scaled(0.0), lora])
    assert apart(nothing, base) <= ROUNDING
    assert apart(something, base) > 10 * ROUNDING


def test_the_base_alone_is_drawn_at_its_full_size() -> None:
    artist = tiny_artist()
    fast, lora = random_adapter(shapes_of("sd15"), seed=9, size=0.2), loras("sd15", 1)[0]
    for one in (artist, replace(artist, accelerator=fast, batch=3)):
        plain = base_drawings(one)
        assert (plain.shape, plain.dtype) == ((len(WORDS), 3, 32, 32), torch.uint8)
        found = one([lora.scaled(0.0)], WORDS, range(SEED, SEED + len(WORDS)))
        values = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in found])
        assert apart(plain.permute(0, 2, 3, 1).flatten(1), values) <= ROUNDING
    assert apart(base_drawings(artist), plain) > 10 * ROUNDING, "the accelerator is there"


def test_the_pipeline_is_left_as_it_was() -> None:
    artist = tiny_artist()
    artist.pipe.set_progress_bar_config(disable=True, desc="mine")
    kinds = {path: type(layer) for path, layer in layers_of(artist.pipe).items()}
    draw_probes(artist, loras("sd15", 2))
    assert artist.pipe._progress_bar_config == {"disable": True, "desc": "mine"}
    assert {path: type(layer) for path, layer in layers_of(artist.pipe).items()} == kinds
    del artist.pipe._progress_bar_config
    with pytest.raises(FormatError):
        draw_probes(artist, loras("sdxl", 1))
    assert not hasattr(artist.pipe, "_progress_bar_config")


def test_pictures_that_are_not_finite_are_noticed() -> None:
    huge = loras("sd15", 1)[0].map(lambda layer: LowRank(layer.down * 1e30, layer.up * 1e30, layer.alpha))
    with pytest.raises(FloatingPointError):
        draw_probes(tiny_artist(), [huge])


def test_a_base_of_another_kind_is_refused() -> None:
    with pytest.raises(FormatError, match=r"a pipeline of glyph, not of sd15"):
        open_alone("sd15", "glyph")


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


def test_the_command_line_draws_with_shipped_adapters(loracomp: Run, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
    from PIL import Image

    (tmp_path / "loras").mkdir()
    for name in ("mono", "violin"):
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(
            (SHIPPED / f"{name}.safetensors").read_bytes()
        )
    place = ("--index", tmp_path / "index")
    first = loracomp("index", "build", tmp_path / "loras", *place, "--json")
    assert "drawn" not in first.json
    assert loracomp("index", "show", "mono", *place, "--json").json["drawn"] is False
    early = loracomp("index", "show", "mono", *place, "--picture", tmp_path / "x.png")
    assert (early.code, "--draw" in early.line) == (5, True)
    done = loracomp("index", "build", tmp_path / "loras", *place, "--draw", "--json")
    assert (done.code, done.json["drawn"], done.json["failed"]) == (0, 2, {})
    assert (done.json["unchanged"], done.json["undrawn"]) == (2, {})
    assert loracomp("index", "show", "mono", *place, "--json").json["drawn"] is True
    for name in ("mono", "violin"):
        assert loracomp("index", "show", name, *place, "--picture", tmp_path / f"{name}.png").code == 0
    mono, violin = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("mono", "violin"))
    assert mono.size == (512, 64)
    assert colour(mono) < 0.5 * colour(violin), "mono draws in black and white"
    assert loracomp("index", "stats", *place, "--json").json["drawn"] == 2
    assert loracomp("index", "export", tmp_path / "all.parquet", *place).code == 0
    assert loracomp("index", "remove", "violin", *place).code == 0
    assert loracomp("index", "stats", *place, "--json").json["drawn"] == 1
    again = loracomp("index", "build", tmp_path / "loras", *place, "--draw", "--json")
    assert again.json["drawn"] == 0


def colour(image: Any) -> float:
    """Mean distance of the channels from their mean."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(-1, 3).float()
    return float((values - values.mean(1, keepdim=True)).abs().mean())


def test_a_base_that_is_not_at_hand_is_said_at_once(loracomp: Run, tmp_path: Path) -> None:
    done = loracomp("index", "build", tmp_path, "--index", tmp_path / "i", "--base", "sdxl", "--draw")
    assert (done.code, "--base sdxl --base-folder" in done.line) == (5, True)
    assert not (tmp_path / "i").exists()
    from loracomp.cli.index_drawing import Drawn

    with pytest.raises(ResourceError, match="3 adapters of flux"):
        Drawn(undrawn={"flux": 3}).check()


if __name__ == "__main__":
    killed(Path(sys.argv[1]))
