"""The benchmark in a world where the truth is known: who should win wins, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.world import NAMES, SIDE, SLUGS, Shelf, artwork, everything, judge
from PIL import Image
from tiny import random_adapter, shapes_of, tiny_pipeline

from loracomp.adapter import Acceleration, Adapter
from loracomp.errors import UsageError
from loracomp.evaluation.bench import ARTIST, NO_LORA, Plan, painter, rows, run
from loracomp.evaluation.cells import PROTOCOLS, Cell, choose, prompt
from loracomp.evaluation.ledger import Ledger, Record
from loracomp.evaluation.meter import Cost, measured
from loracomp.evaluation.pixels import as_images, as_tensor
from loracomp.evaluation.report import from_json, sections, to_json
from loracomp.evaluation.roster import Part
from loracomp.evaluation.scores import SCORES, diversity, score
from loracomp.evaluation.table import markdown, sheet
from loracomp.fusion import METHODS
from loracomp.fusion.gated import usable

ROSTER = everything()
SETTINGS = {"base": "world", "seeds": 2}


class Hand:
    """Paints the truth with as much noise as the method deserves; without adapters only noise."""

    def __init__(self, cells: Sequence[Cell], noise: dict[str, float], stop_after: int = 10**6) -> None:
        self.cells = {prompt(cell, ROSTER.say(cell.parts)): cell for cell in cells}
        self.noise = noise
        self.left = stop_after
        self.calls = 0

    def __call__(
        self, text: str, adapters: Sequence[Adapter], method: str, weight: float, steps: int, count: int
    ) -> tuple[list[Image.Image], Cost]:
        if not self.left:
            raise KeyboardInterrupt
        self.left, self.calls = self.left - 1, self.calls + 1
        source = torch.Generator().manual_seed(len(text))
        static = torch.rand(count, 3, SIDE, SIDE, generator=source)
        share = self.noise[method] if adapters else 1.0
        truth = artwork().truth(self.cells[text])
        return as_images(truth * (1 - share) + static * share), Cost(0.5 * (len(adapters) + 1), 1000)


def plan(protocols: Sequence[str] = ("1+1",), count: int = 8, **changes: Any) -> Plan:
    cells = [cell for name in protocols for cell in choose(name, NAMES, ROSTER.has, count)]
    return replace(Plan(cells, ("composite", "merge")), **changes)


def finished(folder: Path, what: Plan, **noise: float) -> Ledger:
    ledger = Ledger(folder, SETTINGS)
    hand = Hand(what.cells, {"merge": 0.02, "composite": 0.9} | noise)
    run(what, ROSTER, artwork(), judge(), hand, ledger)
    return ledger


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_truth_scores_best(protocol: str) -> None:
    for cell in choose(protocol, NAMES, ROSTER.has, 6):
        truth = artwork().truth(cell)[None]
        best = score(judge(), artwork(), cell, truth)
        assert best["subject"] == best["subject5"] == best["style"] == [1.0]
        assert best["similarity"][0] > 0.9999
        assert best["psnr"] == [60.0]
        if cell.background:
            assert best["background"] == [1.0]
        noisy = (truth + 0.15 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(
            0, 1
        )
        other = score(judge(), artwork(), cell, noisy)
        assert other["psnr"][0] < 30
        assert other["similarity"][0] < best["similarity"][0]


def test_a_wrong_subject_scores_near_chance() -> None:
    """Each of twelve subjects is looked for in pictures of all twelve: one in twelve is right."""
    cells = [Cell("1+1", (slug,), "mono", "", "white") for slug in SLUGS]
    pictures = torch.stack([artwork().truth(cell) for cell in cells])
    found = [score(judge(), artwork(), cell, pictures) for cell in cells]
    wrong = [[v for j, v in enumerate(one["subject"]) if j != i] for i, one in enumerate(found)]
    assert [sum(v or 0 for v in values) for values in wrong] == [0] * len(SLUGS)
    top5 = sum(v or 0 for one in found for v in one["subject5"]) / len(SLUGS) ** 2
    assert top5 == pytest.approx(5 / len(SLUGS), abs=0.1)
    assert all(one["style"] == [1.0] * len(SLUGS) for one in found)
    others = [max(v or 0 for j, v in enumerate(one["similarity"]) if j != i) for i, one in enumerate(found)]
    assert max(others) < 0.95 < min(one["similarity"][i] or 0 for i, one in enumerate(found))


def test_two_subjects_count_in_either_order_and_half_for_one() -> None:
    cell = choose("2+1", NAMES, ROSTER.has, 1)[0]
    swapped = replace(cell, subjects=cell.subjects[::-1])
    third = next(slug for slug in SLUGS if slug not in cell.subjects)
    pictures = [
        artwork().truth(c) for c in (cell, swapped, replace(cell, subjects=(cell.subjects[0], third)))
    ]
    found = score(judge(), artwork(), cell, torch.stack(pictures))
    assert found["subject"] == [1.0, 1.0, 0.5]
    assert found["psnr"][0] == found["psnr"][1] == 60.0 > found["psnr"][2]


def test_diversity_is_zero_for_equals_and_unknown_for_one() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(1, 8), dim=1)
    assert float(diversity(vectors.repeat(4, 1))) == pytest.approx(0, abs=1e-6)
    assert float(diversity(torch.eye(3))) == 1
    assert torch.isnan(diversity(vectors))


def test_better_pictures_win_and_the_table_says_so(tmp_path: Path) -> None:
    what = plan(count=12)
    ledger = finished(tmp_path, what)
    found = sections(what, ledger.records)[0]
    assert found.cells == 12
    for name in ("similarity", "psnr"):
        means = [found.figures[row][name].mean for row in (ARTIST, "merge", "composite")]
        assert means == sorted(means, reverse=True)
    assert found.gains["composite"]["psnr"].high < 0 < found.gains[ARTIST]["psnr"].low
    assert found.figures["merge"]["time"].mean == 3
    assert found.figures[NO_LORA]["time"].mean == found.figures["merge"]["memory"].mean == 1
    assert found.figures[ARTIST]["time"].count == 0
    text = markdown([found], SETTINGS, "loracomp benchmark compose")
    line = next(line for line in text.splitlines() if line.startswith("| composite"))
    assert "▼" in line


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_registered_method_has_a_row(protocol: str, tmp_path: Path) -> None:
    what = plan((protocol,), 2, methods=tuple(METHODS))
    ledger = finished(tmp_path, what, **dict.fromkeys(METHODS, 0.1))
    found = sections(what, ledger.records)
    text = markdown(found, SETTINGS, "x")
    first = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert set(first) >= {*METHODS, ARTIST, NO_LORA, "subject alone", "style alone"}
    assert len(first) == len(set(first))
    sides = sheet(what, ledger, found[0])
    assert sides.height > len(found[0].figures) * 128


def test_results_survive_the_way_through_json(tmp_path: Path) -> None:
    what = plan(("1+1", "2+1"), 3, steps=(25, 100))
    ledger = finished(tmp_path, what)
    found = sections(what, ledger.records)
    assert [(part.protocol, part.steps) for part in found] == [
        ("1+1", 25),
        ("2+1", 25),
        ("1+1", 100),
        ("2+1", 100),
    ]
    values = json.loads(json.dumps(to_json(found, SETTINGS), allow_nan=False))
    assert json.dumps(to_json(from_json(values), SETTINGS)) == json.dumps(values)
    again = Ledger(tmp_path, SETTINGS)
    assert again.records == ledger.records


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    what = plan(count=4)
    units = len(list(what.units()))
    painted = units - len(what.cells)
    first = Hand(what.cells, {"merge": 0.1, "composite": 0.5}, stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        run(what, ROSTER, artwork(), judge(), first, Ledger(tmp_path / "a", SETTINGS))
    with (tmp_path / "a" / "records.jsonl").open("a") as file:
        file.write('{"cell": "torn in the mid')
    second = Hand(what.cells, first.noise)
    ledger = Ledger(tmp_path / "a", SETTINGS)
    run(what, ROSTER, artwork(), judge(), second, ledger)
    assert first.calls == 7
    assert second.calls == painted - 7
    whole = Ledger(tmp_path / "b", SETTINGS)
    run(what, ROSTER, artwork(), judge(), Hand(what.cells, first.noise), whole)
    assert ledger.records == whole.records == Ledger(tmp_path / "a", SETTINGS).records
    some = next(key for key in ledger.records if key[2] == "merge")
    ours, theirs = (book.picture(some, 1) for book in (ledger, whole))
    assert ours is not None
    assert theirs is not None
    assert ours.tobytes() == theirs.tobytes()


def test_unfinished_cells_are_left_out_of_all_rows(tmp_path: Path) -> None:
    what = plan(count=4)
    ledger = finished(tmp_path, what)
    records = {key: r for key, r in ledger.records.items() if key[::2] != (what.cells[0].id, "composite")}
    found = sections(what, records)[0]
    assert found.cells == 3
    assert {figures["similarity"].clusters for figures in found.figures.values()} <= {1, 2, 3}


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path, SETTINGS, {"mono": "1"})
    Ledger(tmp_path, SETTINGS, {"pixel": "2"})
    with pytest.raises(UsageError, match="seeds"):
        Ledger(tmp_path, SETTINGS | {"seeds": 3})
    with pytest.raises(UsageError, match="mono"):
        Ledger(tmp_path, SETTINGS, {"mono": "3"})
    (tmp_path / "records.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="not a benchmark"):
        Ledger(tmp_path, SETTINGS)


def test_records_are_lines() -> None:
    record = Record("1+1/a/b/-/white", 25, "merge", "a", {name: [None, 1.0] for name in SCORES})
    assert Record.from_json(record.to_json()) == record
    assert record.protocol == "1+1"
    with pytest.raises(ValueError, match="JSON"):
        Record("1+1/a", 25, "merge", "a", {"psnr": [float("nan")]}).to_json()


def test_rows_use_each_adapter_alone_and_all_together() -> None:
    cell = choose("2+3", NAMES, ROSTER.has, 1)[0]
    found = {row.name: row.parts for row in rows(cell, ("merge",))}
    alone = ["subject alone", "second subject alone", "style alone", "filter alone", "background alone"]
    assert list(found) == [ARTIST, NO_LORA, *alone, "merge"]
    assert [found[name] for name in alone] == [(0,), (1,), (2,), (3,), (4,)]
    assert found["merge"] == (0, 1, 2, 3, 4)


class Library(Shelf):
    """Adapters with random weights for the tiny pipeline."""

    def adapter(self, part: Part) -> Adapter:
        return random_adapter(shapes_of("sd15"), seed=len(part[1]), name="-".join(part))


def test_weight_zero_is_the_row_without_adapters(tmp_path: Path) -> None:
    roster = Library(list(ROSTER.members))
    paint = painter(tiny_pipeline("sd15"), "cpu", side=SIDE, guidance=3.0)
    for weight in (0.0, 1.0):
        what = plan(count=2, methods=("merge", "switch"), weight=weight, steps=(3,))
        ledger = Ledger(tmp_path / str(weight), SETTINGS)
        run(what, roster, artwork(), judge(), paint, ledger)
        for cell in what.cells:
            plain = ledger.records[cell.id, 3, NO_LORA]
            for name in ("merge", "switch"):
                other = ledger.records[cell.id, 3, name]
                assert (other.scores == plain.scores) == (weight == 0)
            assert plain.seconds
            assert plain.seconds > 0


def test_the_painter_uses_its_settings() -> None:
    def picture(method: str = "merge", **changes: Any) -> Image.Image:
        paint = painter(pipe, "cpu", **({"side": SIDE, "guidance": 3.0} | changes))
        images, _ = paint("a thing", adapters, method, 1.0, 4, 1)
        return images[0]

    pipe = tiny_pipeline("sd15")
    adapters = [random_adapter(shapes_of("sd15"), seed=seed, size=0.4) for seed in (1, 2)]
    plain = picture().tobytes()
    assert picture().tobytes() == plain
    assert picture(guidance=9.0).tobytes() != plain
    assert picture(guidance_rescale=0.7).tobytes() != plain
    assert picture("switch:period=0.5").tobytes() not in (plain, picture("switch:period=0.25").tobytes())
    assert picture(side=64).size == (64, 64)


def test_an_accelerator_is_on_in_every_row(tmp_path: Path) -> None:
    """Every method with it draws what the same method draws on the base into which it is folded."""

    def pictures(accelerator: Adapter | None) -> list[torch.Tensor]:
        paint = painter(pipe, "cpu", side=SIDE, guidance=1.0, accelerator=accelerator)
        rows = [("merge", adapters[:0]), *((method, adapters) for method in usable("sd15"))]
        drawn = [paint("a thing", chosen, method, 0.5, 3, 1)[0] for method, chosen in rows]
        return [as_tensor(images) for images in drawn]

    pipe: Any = tiny_pipeline("sd15")
    shapes = {path: shape for path, shape in shapes_of("sd15").items() if path.startswith("unet")}
    adapters = [random_adapter(shapes, seed=seed, size=0.3) for seed in (1, 2)]
    fast = random_adapter(shapes, seed=3, size=0.3)
    fast = replace(fast, metadata={Acceleration.KEY: Acceleration(3).to_json()})
    without, ours = pictures(None), pictures(fast)
    for path, update in fast.layers.items():
        layer = pipe.unet.get_submodule(path.removeprefix("unet."))
        layer.weight.data += update.delta(torch.float64).float()
    for folded, accelerated, plain in zip(pictures(None), ours, without, strict=True):
        assert float((folded - accelerated).abs().max()) <= 2 / 255
        assert float((folded - plain).abs().max()) > 4 / 255


def test_the_meter_sees_memory_that_was_given_back() -> None:
    with measured("cpu") as little:
        torch.ones(1000)
    with measured("cpu") as much:
        torch.ones(200 * 2**20 // 4).sum()
    assert much.seconds > 0
    if little.peak is not None and much.peak is not None:
        assert much.peak - little.peak > 150 * 2**20
