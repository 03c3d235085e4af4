"""Fuzzes the reader of LoRA files: nothing but a one-line refusal may come out of any input.

Coverage-guided, with atheris installed:   python tests/formats/fuzz_reader.py [CORPUS_FOLDER] [-runs=N]
Without it, seeded mutations of the seeds: python tests/formats/fuzz_reader.py --random N [--seed S]

Inputs that crash, or take more than a second of processor time or 512 MiB, are written to the folder one
is in.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

_POOL = 400
_REPORT_EVERY = 20_000
_SECONDS, _MIB = 1.0, 512


def corpus() -> list[bytes]:
    """The seeds and the committed inputs."""
    from mutations import CORPUS, seeds

    return [data for _, data in seeds()] + [file.read_bytes() for file in sorted(CORPUS.glob("*.bin"))]


class Watch:
    """Feeds a reader, and raises for an input that takes too much time or memory; counts and reports."""

    def __init__(self) -> None:
        from mutations import Reader

        self.reader, self.count = Reader(), 0
        for data in corpus():
            self.reader.feed(data)
        self.reader.slowest, self.before, self.start = 0.0, _resident(), time.monotonic()

    def feed(self, data: bytes) -> None:
        """One input; what comes out is an error of the reader."""
        self.count += 1
        try:
            self.reader.feed(data)
        finally:
            if self.count % _REPORT_EVERY == 0:
                self.report()
        if self.reader.slowest > _SECONDS:
            raise AssertionError(f"took {self.reader.slowest:.2f} s")
        if _resident() - self.before > _MIB:
            raise AssertionError(f"took {_resident() - self.before} MiB")

    def report(self) -> None:
        """Prints the figures so far."""
        print(
            f"{self.count} inputs in {time.monotonic() - self.start:.0f} s: {self.reader.read} read, "
            f"{self.reader.refused} refused, slowest {self.reader.slowest:.3f} s, "
            f"memory +{_resident() - self.before} MiB",
            flush=True,
        )


def _resident() -> int:
    """The most memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def at_random(runs: int, seed: int) -> int:
    """Feeds mutations, breeding from inputs that are read; the number of failures."""
    from mutations import mutated

    watch, chance, failures, pool = Watch(), random.Random(seed), 0, corpus()
    for _ in range(runs):
        data, read = mutated(chance.choice(pool), chance), watch.reader.read
        try:
            watch.feed(data)
        except Exception as error:
            failures += 1
            watch.reader.slowest = 0.0
            place = Path(f"crash-{hashlib.sha256(data).hexdigest()[:12]}.bin")
            place.write_bytes(data)
            print(f"{place}: {type(error).__name__}: {error}", flush=True)
        if watch.reader.read > read:
            pool.append(data)
            if len(pool) > _POOL:
                del pool[chance.randrange(len(pool))]
    watch.report()
    print(f"{failures} failures", flush=True)
    return failures


def guided(arguments: list[str]) -> None:
    """Hands over to atheris, with the structural mutations as its custom mutator.

    It starts from the seeds and the committed inputs, without which it would hardly get past the header.
    """
    import atheris

    with atheris.instrument_imports(include=["loracomp.formats"]):
        from mutations import mutated

    watch = Watch()

    def mutator(data: bytes, size: int, seed: int) -> bytes:
        return mutated(data, random.Random(seed), size)

    known = tempfile.mkdtemp()
    for number, data in enumerate(corpus()):
        Path(known, f"{number}.bin").write_bytes(data)
    folders = [text for text in arguments if not text.startswith("-")]
    options = [text for text in arguments if text.startswith("-")]
    atheris.Setup([sys.argv[0], *options, *folders, known], watch.feed, custom_mutator=mutator)
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
