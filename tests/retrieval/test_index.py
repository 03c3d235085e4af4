"""Every engine of the index does the same: rows, filters, neighbours, versions, snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from loracomp.errors import FormatError, UsageError
from loracomp.retrieval import lance, postgres
from loracomp.retrieval.filters import COLUMNS, All, Compare, Either, Filter, Not, compare, holds, parse
from loracomp.retrieval.index import SPACES, AdapterIndex, open_index

LICENCES = ("MIT", "Apache-2.0", "O'Reilly", "", "50%_off\\")


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row with vectors that its number decides."""
    source = np.random.default_rng(number)
    made: dict[str, Any] = {
        "id": f"{number:064x}", "path": f"/loras/{number}.safetensors", "name": f"lora {number}",
        "base": ("glyph", "sdxl")[number % 2], "licence": LICENCES[number % len(LICENCES)],
        "words": "Ein Süßer Drache", "trigger": "zxq", "kind": "lora", "dialect": "kohya", "groups": "mlp",
        "delta": "00", "encoder": "free-1", "rank": 4 * (number % 5), "sites": 10, "bytes": 1000 + number,
        "quarantine": 0, "added": 1_700_000_000, "norm": number / 8, "complete": number % 3 > 0,
        "heard": number % 7 > 0, "learned": False, "heard_mean": 0.5, "heard_spread": 2.0,
        "probes": bytes([number % 256, 0, 255]),
    }  # fmt: skip
    for space, width in SPACES.items():
        vector = source.standard_normal(width).astype(np.float32)
        made[f"v_{space}"] = vector / np.linalg.norm(vector)
    if not made["heard"]:
        made |= {"v_hears": None, "v_says": None}
    made["v_learned"] = None
    return made | changes


def rows(count: int) -> list[dict[str, Any]]:
    return [row(number) for number in range(count)]


def test_rows_come_back_as_they_were(index: AdapterIndex) -> None:
    before = index.stats()["version"]
    after = index.upsert(rows(9))
    assert after > before
    assert index.stats()["rows"] == 9
    wanted = [f"{n:064x}" for n in (5, 99, 2)]
    found = index.get(wanted)
    assert [r["id"] for r in found] == [wanted[0], wanted[2]]
    assert found[0]["probes"] == bytes([5, 0, 255])
    assert {name: found[0][name] for name in COLUMNS} == {name: row(5)[name] for name in COLUMNS}
    assert np.allclose(found[0]["v_update"], row(5)["v_update"], atol=1e-3)
    assert found[0]["v_learned"] is None
    assert [r["name"] for r in index.scan(columns=["name"])] == [f"lora {n}" for n in range(9)]


def test_upserts_are_idempotent_and_the_last_of_a_batch_counts(index: AdapterIndex) -> None:
    index.upsert(rows(4))
    index.upsert([row(3, name="first"), row(3, name="second"), row(4)])
    index.upsert([row(3, name="second")])
    assert [r["name"] for r in index.scan(columns=["name"])] == [
        "lora 0", "lora 1", "lora 2", "second", "lora 4",
    ]  # fmt: skip


def test_a_batch_with_a_bad_row_changes_nothing(index: AdapterIndex) -> None:
    index.upsert(rows(2))
    with pytest.raises(Exception, match=r"(?i)dim|expected|width|shape|vectors"):
        index.upsert([row(2), row(3, v_update=np.zeros(7, np.float32))])
    assert index.stats()["rows"] == 2


def test_rows_go_by_id_or_filter(index: AdapterIndex) -> None:
    index.upsert(rows(10))
    index.delete([])
    assert index.stats()["rows"] == 10
    index.delete([f"{3:064x}", "unknown"])
    index.delete(parse("base = 'sdxl' and rank >= 8"))
    left = [r for r in rows(10) if r["name"] != "lora 3" and not (r["base"] == "sdxl" and r["rank"] >= 8)]
    assert [r["name"] for r in index.scan()] == [r["name"] for r in left]


@pytest.mark.parametrize(
    "where", ["rank < 100", "rank = 8", "licence = 'O''Reilly' or base = 'sdxl'", "rank = 5"]
)
def test_neighbours_are_those_of_a_plain_comparison(index: AdapterIndex, where: str) -> None:
    held = rows(60)
    index.upsert(held)
    wanted = parse(where)
    query = held[8]["v_hears"] + 0.5 * held[12]["v_hears"]
    there = [r for r in held if holds(wanted, r) and r["heard"]]
    scores = {r["id"]: float(r["v_hears"] @ query / np.linalg.norm(query)) for r in there}
    best = sorted(scores, key=lambda key: -scores[key])[:5]
    for exact in (False, True):
        hits = index.search("hears", query, 5, wanted, exact)
        assert [hit.id for hit in hits] == best
        assert np.allclose([hit.score for hit in hits], [scores[key] for key in best], atol=2e-3)
    assert all(hit.version == index.stats()["version"] for hit in hits)
    assert all(set(hit.row) >= set(COLUMNS) for hit in hits)


def test_rows_without_a_vector_are_never_found(index: AdapterIndex) -> None:
    index.upsert(rows(20))
    hits = index.search("hears", row(3)["v_hears"], 50)
    assert {hit.row["name"] for hit in hits} == {r["name"] for r in rows(20) if r["heard"]}
    assert index.search("learned", row(3)["v_hears"], 50) == []


def test_a_snapshot_moves_between_indices(index: AdapterIndex, tmp_path: Path) -> None:
    index.upsert(rows(7))
    index.snapshot(tmp_path / "all.parquet")
    index.delete(All(()))
    assert index.stats()["rows"] == 0
    index.upsert([row(50)])
    index.restore(tmp_path / "all.parquet")
    assert [r["name"] for r in index.scan()] == [r["name"] for r in rows(7)]
    other = open_index(str(tmp_path / "other"))
    other.restore(tmp_path / "all.parquet")
    assert list(other.scan()) == list(index.scan())
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(FormatError, match="not a snapshot"):
        index.restore(tmp_path / "bad.parquet")


def test_versions_are_answered_or_refused(index: AdapterIndex) -> None:
    first = index.upsert([row(1)])
    index.upsert([row(2), row(3)])
    query = row(2)["v_update"]
    assert len(index.search("update", query, 9)) == 3
    if index.stats()["engine"] == "lance":
        assert [hit.row["name"] for hit in index.search("update", query, 9, version=first)] == ["lora 1"]
    else:
        with pytest.raises(UsageError, match="history"):
            index.search("update", query, 9, version=first)
    with pytest.raises(UsageError):
        index.search("update", query, 9, version=10**6)


def test_optimizing_keeps_every_answer(index: AdapterIndex) -> None:
    index.upsert(rows(40))
    query = row(11)["v_update"]
    before = [(hit.id, round(hit.score, 3)) for hit in index.search("update", query, 6, parse("rank <= 8"))]
    index.optimize()
    index.upsert([row(100, name="late")])
    after = [(hit.id, round(hit.score, 3)) for hit in index.search("update", query, 6, parse("rank <= 8"))]
    assert before == after
    assert {"base", "rank"} <= {name.removeprefix("loracomp_") for name in index.stats()["indexed"]}
    assert index.search("update", row(100)["v_update"], 1)[0].row["name"] == "late"


def test_large_tables_have_vector_indices_that_miss_little(
    index: AdapterIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in (lance, postgres):
        monkeypatch.setattr(engine, "INDEXED_FROM", 300)
    monkeypatch.setattr(lance, "SCANNED_UP_TO", 5)
    held = rows(400)
    index.upsert(held)
    index.optimize()
    indexed = {name.removeprefix("loracomp_") for name in index.stats()["indexed"]}
    assert {"v_update", "v_hears"} <= indexed
    for text in ("rank >= 0", "rank < 8", "bytes < 1030"):
        where = parse(text)
        found = right = 0
        for number in range(0, 40, 4):
            query = held[number]["v_update"] + 0.5 * held[number + 1]["v_update"]
            exact = {hit.id for hit in index.search("update", query, 10, where, exact=True)}
            hits = [hit.id for hit in index.search("update", query, 10, where)]
            assert len(hits) == 10
            right += len(exact)
            found += len(exact & set(hits))
        assert found >= 0.9 * right, text
    late = row(1000, name="late")
    index.upsert([late])
    assert index.search("update", late["v_update"], 1)[0].row["name"] == "late"


def test_what_one_partition_does_not_hold_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
    monkeypatch.setattr(lance, "INDEXED_FROM", 300)
    monkeypatch.setattr(lance, "SCANNED_UP_TO", 5)
    monkeypatch.setattr(lance, "_PROBES", ((0.0, 1),))
    index = open_index(str(tmp_path / "lance"))
    index.upsert(rows(400))
    index.optimize()
    # As if the partitions that are searched held three of the rows.
    near = lance.LanceIndex._near
    monkeypatch.setattr(lance.LanceIndex, "_near", lambda *parts: near(*parts)[:3])
    where = parse("bytes < 1012")
    kept = {held["id"] for held in index.scan(where)}
    assert len(kept) == 12
    assert {hit.id for hit in index.search("update", row(3)["v_update"], 12, where)} == kept
    assert len(index.search("update", row(3)["v_update"], 300)) == 300


def test_a_hit_shows_what_the_row_holds(index: AdapterIndex, tmp_path: Path) -> None:
    index.upsert(rows(12))
    index.upsert([row(4, name="renamed", licence="CC0-1.0", norm=0.1 + 0.2)])
    index.snapshot(tmp_path / "rows.parquet")
    index.delete([row(5)["id"]])
    index.restore(tmp_path / "rows.parquet")
    held = {found["id"]: found for found in index.scan()}
    hits = index.search("update", row(4)["v_update"], 12)
    assert len(hits) == 12
    assert all(dict(hit.row) == held[hit.id] for hit in hits)
    assert hits[0].row["norm"] == 0.1 + 0.2


VALUES = {
    str: some.sampled_from([*LICENCES, "glyph", "lora 3", "drache", "SÜSS"]),
    int: some.integers(-3, 30),
    float: some.floats(-2, 9, allow_nan=False),
    bool: some.booleans(),
}


@some.composite
def filters(draw: Any) -> Filter:
    def leaf() -> Compare:
        column = draw(some.sampled_from(["name", "licence", "rank", "norm", "complete", "bytes", "words"]))
        kind = COLUMNS[column]
        operators = ["=", "!="] if kind is bool else ["=", "!=", "<", "<=", ">", ">=", "in"]
        operator = draw(some.sampled_from([*operators, "contains"] if kind is str else operators))
        value = draw(VALUES[kind])
        return compare(column, operator, (value, draw(VALUES[kind])) if operator == "in" else value)

    def tree(depth: int) -> Filter:
        kind = draw(some.sampled_from(["leaf", "all", "any", "not"])) if depth else "leaf"
        if kind == "leaf":
            return leaf()
        if kind == "not":
            return Not(tree(depth - 1))
        parts = tuple(tree(depth - 1) for _ in range(draw(some.integers(0, 2))))
        return All(parts) if kind == "all" else Either(parts)

    return tree(2)


def test_filters_mean_the_same_to_every_engine(index: AdapterIndex) -> None:
    held = rows(15)
    index.upsert(held)

    @settings(
        max_examples=40, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )  # fmt: skip
    @given(filters())
    def check(where: Filter) -> None:
        expected = [r["id"] for r in held if holds(where, r)]
        assert [r["id"] for r in index.scan(where, ["id"])] == expected

    check()
