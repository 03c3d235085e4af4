"""Fuzzes the reader of LoRA files: nothing but a one-line refusal may come out of any input.

Coverage-guided, with atheris installed:   python tests/formats/fuzz_reader.py [CORPUS_FOLDER] [-runs=N]
Without it, seeded mutations of the seeds: python tests/formats/fuzz_reader.py --random N [--seed S]

Inputs that crash, or take more than a second of processor time, are written beside the folder one is in.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

_POOL = 400
_REPORT_EVERY = 20_000


def corpus() -> list[bytes]:
    """The seeds and the committed inputs."""
    from mutations import CORPUS, seeds

    return [data for _, data in seeds()] + [file.read_bytes() for file in sorted(CORPUS.glob("*.bin"))]


def at_random(runs: int, seed: int) -> int:
    """Feeds mutations, breeding from inputs that are read; the number of failures."""
    from mutations import Reader, mutated

    reader, chance, failures = Reader(), random.Random(seed), 0
    pool = corpus()
    for data in pool:
        reader.feed(data)
    reader.slowest, resident = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    for index in range(1, runs + 1):
        data, read = mutated(chance.choice(pool), chance), reader.read
        try:
            reader.feed(data)
        except Exception as error:
            failures += 1
            place = Path(f"crash-{hashlib.sha256(data).hexdigest()[:12]}.bin")
            place.write_bytes(data)
            print(f"{place}: {type(error).__name__}: {error}", flush=True)
        if reader.read > read:
            pool.append(data)
            if len(pool) > _POOL:
                del pool[chance.randrange(len(pool))]
        if index % _REPORT_EVERY == 0 or index == runs:
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) // 1024
            print(
                f"{index} inputs in {time.monotonic() - start:.0f} s: {reader.read} read, {reader.refused} "
                f"refused, {failures} failures, slowest {reader.slowest:.3f} s, memory +{grown} MiB",
                flush=True,
            )
    return failures


def guided(arguments: list[str]) -> None:
    """Hands over to atheris, with the structural mutations as its custom mutator."""
    import atheris

    with atheris.instrument_imports(include=["loracomp.formats"]):
        from mutations import Reader, mutated

    reader = Reader()

    def mutator(data: bytes, size: int, seed: int) -> bytes:
        return mutated(data, random.Random(seed), size)

    atheris.Setup([sys.argv[0], *arguments], reader.feed, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> None:
    """Chooses the way of fuzzing."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options, rest = parser.parse_known_args()
    if options.random:
        sys.exit(1 if at_random(options.random, options.seed) else 0)
    guided(rest)


if __name__ == "__main__":
    main()
