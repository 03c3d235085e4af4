"""What the encoder is trained on: features of a corpus's adapters, its concepts in words and pictures.

A corpus is the folder that ``python -m loracomp.training.corpus`` makes: ``corpus.jsonl`` has a row per
adapter with ``file``, ``concept``, ``concept_split`` and ``seed_split``, ``concepts.json`` the concepts'
``description`` and ``paraphrases``, and ``pictures/ID/`` their pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import TrainingError
from loracomp.formats import save
from loracomp.formats.layerfile import LayerFile
from loracomp.retrieval.collection import Collection
from loracomp.retrieval.encoder import picture
from loracomp.retrieval.encoding import Encoded
from loracomp.retrieval.said import Said, TokenStates, of_all
from loracomp.retrieval.sites import SiteTable, site_table
from loracomp.retrieval.towers import PICTURE, Batch, batch
from loracomp.retrieval.words import content
from loracomp.training.corpus.store import CONCEPTS, TABLE
from loracomp.training.encoder.wide import Wide

SPLITS = ("train", "validation", "test", "other")
"""``other``: a training concept with a seed that is not for training; it is in the gallery alone."""


@dataclass(frozen=True)
class Entry:
    """One adapter of a corpus: its file, concept and place in :data:`SPLITS`."""

    file: Path
    concept: str
    split: str


@dataclass(frozen=True)
class Corpus:
    """A corpus as its description says.

    Attributes:
        entries: The adapters.
        paraphrases: Texts of each concept.
        pictures: Files of each concept's pictures.
    """

    entries: tuple[Entry, ...]
    paraphrases: Mapping[str, tuple[str, ...]]
    pictures: Mapping[str, tuple[Path, ...]]


def read_corpus(folder: Path) -> Corpus:
    """The corpus in a folder; raises :class:`TrainingError` with what is missing."""
    try:
        rows = [json.loads(line) for line in (folder / TABLE).read_text("utf-8").splitlines()]
        concepts = {str(row["id"]): row for row in json.loads((folder / CONCEPTS).read_text("utf-8"))}
        entries = tuple(
            Entry(folder / row["file"], str(row["concept"]), _split(row["concept_split"], row["seed_split"]))
            for row in rows
        )
        used = sorted({entry.concept for entry in entries})
        texts = {name: (concepts[name]["description"], *concepts[name]["paraphrases"]) for name in used}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{folder}: not a corpus ({error!r}); make one: python -m loracomp.training.corpus all"
        ) from error
    if not entries:
        raise TrainingError(f"{folder / TABLE}: has no adapters; make the corpus first")
    pictures = {name: tuple(sorted((folder / "pictures" / name).glob("*.png"))) for name in used}
    return Corpus(entries, texts, pictures)


def _split(concept: str, seed: str) -> str:
    """Trained on are training seeds of training concepts alone."""
    if concept not in SPLITS[:3]:
        raise ValueError(f"a concept of the split {concept!r}")
    return "other" if concept == "train" and seed != "train" else concept


@dataclass(frozen=True, eq=False)
class Material:
    """A corpus as tensors.

    Attributes:
        table: The base's sites.
        rows: Features of the adapters.
        concepts: Concept of each adapter, shape (n,).
        splits: Place in :data:`SPLITS` of each adapter, shape (n,).
        states: Centered token states of all paraphrases, t texts.
        spoken: Concept of each paraphrase, shape (t,).
        pictures: All pictures, shape (p, 3, 64, 64), uint8.
        shown: Concept of each picture, shape (p,).
        names: Names of the concepts.
        common: What was taken off the text states, shape (d,).
        files: The adapters' files.
        plain: What the base alone draws, shape (8, 3, 64, 64), uint8; None where nothing was drawn.
        wide: Further words and pictures; None for none.
        words: Words of the training concepts' paraphrases.
    """

    table: SiteTable
    rows: Batch
    concepts: Tensor
    splits: Tensor
    states: Said
    spoken: Tensor
    pictures: Tensor
    shown: Tensor
    names: tuple[str, ...]
    common: Tensor
    files: tuple[Path, ...]
    plain: Tensor | None = None
    wide: Wide | None = None
    words: frozenset[str] = frozenset()

    def members(self, split: str) -> Tensor:
        """Positions of the adapters of a split."""
        return (self.splits == SPLITS.index(split)).nonzero()[:, 0]

    def unseen(self, split: str) -> Tensor:
        """Concepts that are in a split and not in training."""
        there = set(self.concepts[self.members(split)].tolist())
        return torch.tensor(
            sorted(there - set(self.concepts[self.members("train")].tolist())), dtype=torch.long
        )

    def to(self, device: torch.device | str) -> Material:
        """The material on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, (Tensor, Batch, Wide, Said))
        }
        return replace(self, **moved)


def material(corpus: Corpus, collection: Collection, base: str, states: TokenStates) -> Material:
    """The tensors of a corpus whose adapters are in a collection's feature shards.

    Args:
        corpus: The corpus.
        collection: Built from the corpus's files.
        base: Base of all adapters.
        states: The base's text encoder.

    Raises:
        TrainingError: An adapter has no features; ``loracomp index build`` makes them.
    """
    found = [row.features for row in stored(corpus, collection)]
    bank = collection.banks[base]
    names = tuple(sorted({entry.concept for entry in corpus.entries}))
    number = {name: place for place, name in enumerate(names)}
    texts = [(text, number[name]) for name in names for text in corpus.paraphrases[name]]
    trained = {entry.concept for entry in corpus.entries if entry.split == "train"}
    shown = [(file, number[name]) for name in names for file in corpus.pictures.get(name, ())]
    return Material(
        table=site_table(base),
        rows=batch(found, bank.width, torch.float16),
        concepts=torch.tensor([number[entry.concept] for entry in corpus.entries]),
        splits=torch.tensor([SPLITS.index(entry.split) for entry in corpus.entries]),
        states=of_all(states, [text for text, _ in texts]).minus(bank.common),
        spoken=torch.tensor([place for _, place in texts]),
        pictures=_pictures([file for file, _ in shown]),
        shown=torch.tensor([place for _, place in shown], dtype=torch.long),
        names=names,
        common=bank.common,
        files=tuple(entry.file for entry in corpus.entries),
        words=frozenset(
            word for name in trained for text in corpus.paraphrases[name] for word in content(text)
        ),
    )


def stored(corpus: Corpus, collection: Collection) -> list[Encoded]:
    """Facts and features of a corpus's adapters in their order; raises :class:`TrainingError` for gaps."""
    ids = {}
    for entry in corpus.entries:
        seen = collection.journal.seen.get(str(entry.file.absolute()))
        if seen is None or not seen.id:
            raise TrainingError(f"{entry.file}: has no features; run loracomp index build on the corpus")
        ids[entry.file] = seen.id
    held: dict[str, Encoded] = {}
    for _, rows in collection.store.rows(set(ids.values())):
        held |= {row.facts.id: row for row in rows}
    return [held[ids[entry.file]] for entry in corpus.entries]


def _pictures(files: Sequence[Path]) -> Tensor:
    from PIL import Image

    out = torch.zeros(len(files), 3, PICTURE, PICTURE, dtype=torch.uint8)
    for place, file in enumerate(files):
        try:
            with Image.open(file) as image:
                out[place] = (picture(image) * 255).round().to(torch.uint8)
        except OSError as error:
            raise TrainingError(f"{file}: cannot be read as a picture ({error})") from error
    return out


def halved(corpus: Corpus, base: str, folder: Path, seed: int = 0) -> Corpus:
    """The same corpus after half of each adapter's layers, drawn at random, were taken out.

    Args:
        corpus: The corpus.
        base: Base of all adapters.
        folder: Where the poorer files go.
        seed: Decides what is taken out.
    """
    source = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for entry in corpus.entries:
        with LayerFile(entry.file, base=base) as adapter:
            paths = sorted(adapter.layers)
            kept = torch.randperm(len(paths), generator=source)[: (len(paths) + 1) // 2].tolist()
            file = folder / entry.file.name
            if not file.is_file():
                save(Adapter({paths[p]: adapter.layers[paths[p]] for p in kept}, base, entry.file.stem), file)
        entries.append(replace(entry, file=file))
    return replace(corpus, entries=tuple(entries))
