"""Run as a program: builds an index again and again, and kills each build at a random moment.

    python killed_builds.py FILES INDEX KILLS SEED BANK

What takes long to import is imported once; each build is a fork of this process, so that it begins at
once. LanceDB is left to the forks, since its threads do not survive one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow  # noqa: F401 — imported once for all forks
import torch
from safetensors import safe_open

import loracomp.retrieval.building  # noqa: F401
from loracomp.retrieval.journal import Journal


def build(files: Path, index: Path, bank: Path) -> None:
    """A build in this process, with text probes that were made before."""
    from loracomp.retrieval.building import build as make
    from loracomp.retrieval.collection import Collection

    torch.set_num_threads(1)
    collection = Collection(index, create=True)
    (index / "banks").mkdir(exist_ok=True)
    if not (index / "banks" / "glyph.safetensors").exists():
        os.link(bank, index / "banks" / "glyph.safetensors")
    make([files], collection, jobs=1, batch=2)
    collection.close()


def forked(files: Path, index: Path, bank: Path, seconds: float | None) -> float | None:
    """A build in a fork, killed after some seconds; how long it took, None where it was killed."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            build(files, index, bank)
        except BaseException as error:  # the parent reads it from the exit code alone
            print(f"build failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    while seconds is None or time.monotonic() - start < seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise SystemExit(f"a build ended with {status}")
            return time.monotonic() - start
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def whole_shards(index: Path) -> set[str]:
    """Ids in the shards, each of which has to be readable to its end."""
    ids: set[str] = set()
    for path in (index / "features").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                file.get_tensor(key)
            ids |= {facts["id"] for facts in json.loads((file.metadata() or {})["facts"])}
    return ids


def main(files: Path, index: Path, kills: int, seed: int, bank: Path) -> None:
    """Prints, as JSON, how many builds were killed and how many rows had been acknowledged each time."""
    draw = random.Random(seed)
    whole = forked(files, index.with_name("whole"), bank, None)
    if whole is None:
        raise SystemExit("a build that nobody kills was killed")
    acknowledged: list[int] = []
    for _ in range(kills):
        forked(files, index, bank, draw.uniform(0.02, 1.0) * whole)
        noted = {seen.id for seen in Journal(index / "journal.jsonl").seen.values()}
        lost = noted - whole_shards(index)
        if lost:
            raise SystemExit(f"acknowledged rows were lost: {sorted(lost)}")
        if acknowledged and len(noted) < acknowledged[-1]:
            raise SystemExit("the journal shrank")
        acknowledged.append(len(noted))
        if len(noted) == len(list(files.glob("*.safetensors"))):
            # Complete: begin anew elsewhere, so that every kill meets a build at work.
            index = index.with_name(f"{index.name}x")
            acknowledged.clear()
    forked(files, index, bank, None)
    print(json.dumps({"index": str(index), "whole": str(index.with_name("whole"))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
