"""A million vectors in the index: how long it takes to build, how fast and how well it answers.

    python -m benchmarks.index [--rows 1000000] [--server postgresql://…] [--embeddings FILE.npy]

Rows carry vectors of 512 numbers in the space ``hears``, jittered embeddings of a corpus or random centers.
Queries are jittered afresh. After a hundred queries that warm the index, timed on their own, answers
are held against exact search in numpy, without a filter and with filters that keep 50 %, 3 % and 0.1 %.
Targets on two cores: built within 40 minutes, 95th percentile of the top ten under 25 ms at recall 0.95 with
every filter, always ten rows, opened cold in under 2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from loracomp.retrieval.filters import EVERYTHING, Filter, holds, parse
from loracomp.retrieval.index import SPACES, AdapterIndex, Row, open_index

RESULT = Path(__file__).parent / "results" / "index.json"
SPACE, TOP, ROUNDS = "hears", 10, 5
FILTERS = {"all": "", "50 %": "licence = 'MIT'", "3 %": "rank < 30", "0.1 %": "bytes < 1000"}
_BATCH = 20_000


def centers(options: argparse.Namespace) -> np.ndarray:
    """Embeddings to jitter, unit length, (n, 512)."""
    if options.embeddings:
        found = np.load(options.embeddings).astype(np.float32)
    else:
        found = np.random.default_rng(0).standard_normal((1000, SPACES[SPACE])).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def jittered(around: np.ndarray, count: int, seed: int, jitter: float) -> np.ndarray:
    """Unit vectors near drawn centers, (count, 512); ``jitter`` is the noise's length beside a center's."""
    draw = np.random.default_rng(seed)
    out = np.empty((count, around.shape[1]), np.float32)
    for start in range(0, count, _BATCH):
        part = out[start : start + _BATCH]
        noise = draw.standard_normal(part.shape, np.float32) / around.shape[1] ** 0.5
        part[:] = around[draw.integers(len(around), size=len(part))] + jitter * noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def facts(number: int) -> dict[str, Any]:
    """Columns of a row; filters keep the shares that :data:`FILTERS` says."""
    mixed = (number * 2_654_435_761) % 2**32
    return {
        "id": f"{mixed:016x}{number:048x}", "path": f"/loras/{number}.safetensors", "name": f"lora {number}",
        "base": "glyph", "licence": ("MIT", "CC0-1.0")[mixed % 2], "words": "", "trigger": "", "kind": "lora",
        "dialect": "kohya", "groups": "mlp", "delta": "", "encoder": "free-1", "rank": mixed // 2 % 1000,
        "sites": 106, "bytes": mixed // 2000 % 1_000_000, "quarantine": 0, "added": number, "norm": 1.0,
        "complete": True, "heard": True, "learned": False, "heard_mean": 0.0, "heard_spread": 1.0,
        "probes": b"", "v_says": None, "v_learned": None,
    }  # fmt: skip


def batches(vectors: np.ndarray) -> Iterator[list[Row]]:
    """Rows, twenty thousand at a time."""
    for start in range(0, len(vectors), _BATCH):
        part = vectors[start : start + _BATCH]
        yield [
            {**facts(start + n), "v_update": vector[: SPACES["update"]], f"v_{SPACE}": vector}
            for n, vector in enumerate(part)
        ]


def make(index: AdapterIndex, vectors: np.ndarray) -> dict[str, float]:
    """Seconds to write all rows and to index them."""
    start = time.perf_counter()
    for rows in batches(vectors):
        index.upsert(rows)
    written = time.perf_counter()
    index.optimize()
    return {"write_s": written - start, "index_s": time.perf_counter() - written}


def exact(vectors: np.ndarray, queries: np.ndarray, kept: np.ndarray) -> list[set[int]]:
    """The ten best rows of each query among those that a filter keeps."""
    best: list[set[int]] = []
    places = np.flatnonzero(kept)
    shown = vectors if len(places) == len(vectors) else vectors[places]
    for query in queries:
        scores = shown @ query
        top = np.argpartition(-scores, min(TOP, len(scores) - 1))[:TOP]
        best.append(set(places[top].tolist()))
    return best


def warming(index: AdapterIndex, queries: np.ndarray) -> dict[str, float]:
    """Milliseconds of the first queries, which load most of the index into memory."""
    times = []
    for query in queries:
        start = time.perf_counter()
        index.search(SPACE, query.tolist(), TOP)
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "queries": len(times),
        "p50_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
    }


def answers(index: AdapterIndex, vectors: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """Milliseconds, recall and numbers of rows, by filter; times are medians of rounds that take turns."""
    wheres: dict[str, Filter] = {name: parse(text) if text else EVERYTHING for name, text in FILTERS.items()}
    kept = {
        name: np.array([holds(where, facts(number)) for number in range(len(vectors))])
        for name, where in wheres.items()
    }
    truth = {name: exact(vectors, queries, mask) for name, mask in kept.items()}
    rounds = [
        {name: asked(index, queries, truth[name], where) for name, where in wheres.items()}
        for _ in range(ROUNDS)
    ]
    return {
        name: {"kept": int(kept[name].sum())}
        | {key: statistics.median(found[name][key] for found in rounds) for key in rounds[0][name]}
        for name in wheres
    }


def asked(index: AdapterIndex, queries: np.ndarray, truth: list[set[int]], where: Filter) -> dict[str, float]:
    """Recall, times and the fewest rows of a round of queries."""
    times, hits, fewest = [], 0, TOP
    for query, right in zip(queries, truth, strict=True):
        vector = query.tolist()
        start = time.perf_counter()
        found = index.search(SPACE, vector, TOP, where)
        times.append(1e3 * (time.perf_counter() - start))
        hits += len(right & {int(hit.row["added"]) for hit in found})
        fewest = min(fewest, len(found))
    middle, high = np.percentile(times, (50, 95)).tolist()
    return {
        "recall": hits / sum(map(len, truth)),
        "p50_ms": middle,
        "p95_ms": high,
        "fewest_rows": fewest,
    }


def cold(place: str) -> dict[str, float]:
    """Seconds that a fresh process takes to open the index, and to its first answer, after its imports."""
    command = [sys.executable, "-m", "benchmarks.index", "--cold", place]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cold_child(place: str) -> dict[str, float]:
    """What :func:`cold` measures, in this process."""
    if not place.startswith("postgres"):
        import lancedb  # noqa: F401 — counted as an import
    query = np.random.default_rng(5).standard_normal(SPACES[SPACE])
    start = time.perf_counter()
    index = open_index(place)
    opened = time.perf_counter()
    index.search(SPACE, query.tolist(), TOP)
    return {"open_s": opened - start, "first_answer_s": time.perf_counter() - start}


def measured(options: argparse.Namespace, place: str) -> dict[str, Any]:
    """Builds an index and asks it."""
    around = centers(options)
    vectors = jittered(around, options.rows, 1, options.jitter)
    queries = jittered(around, options.queries, 2, options.jitter)
    index = open_index(place)
    index.delete(EVERYTHING)
    built = make(index, vectors)
    return {
        "rows": options.rows,
        "engine": index.stats()["engine"],
        **built,
        "first": warming(index, jittered(around, 100, 3, options.jitter)),
        "answers": answers(index, vectors, queries),
        "cold": cold(place),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    """Measures, prints and writes the result beside what is there."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--jitter", type=float, default=0.6)
    parser.add_argument("--embeddings", type=Path, help=".npy with embeddings of a corpus, (n, 512)")
    parser.add_argument("--server", help="PostgreSQL instead of the embedded index; its table is emptied")
    parser.add_argument("--folder", type=Path, help="where the index lies; a temporary folder if left out")
    parser.add_argument("--cold", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cold:
        print(json.dumps(cold_child(options.cold)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = measured(options, options.server or str((options.folder or Path(temporary)) / "lance"))
    print(json.dumps(found, indent=1))
    RESULT.parent.mkdir(exist_ok=True)
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps({**before, f"{found['engine']} {options.rows}": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
