"""A tiny world for the recipe's tests: synthetic icons of real slugs in every style."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from loracomp.training.glyph.packages import ART_SETS
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.render import render_all
from loracomp.training.glyph.store import Store
from loracomp.training.glyph.subjects import Icon, Subject

SLUGS = ("watermelon", "bicycle", "red-apple", "rocket", "pizza", "fire", "key", "balloon")


def synthetic_svg(subject: int, style: int) -> str:
    """A shape that tells the subject, in strokes and colors that tell the style."""
    rng = np.random.default_rng(subject)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in rng.uniform(2, 30, (4 + subject % 3, 2)))
    fill = f"hsl({(subject * 47) % 360},80%,{35 + 6 * style}%)" if style != 5 else "black"
    pen = f'stroke="hsl({style * 51},60%,30%)" stroke-width="{style % 3}"'
    body = f'<polygon points="{points}" fill="{fill}" {pen}/><circle cx="16" cy="16" r="{subject % 5 + 2}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{body}</svg>'


@pytest.fixture(scope="session")
def store() -> Store:
    subjects = {
        slug: Subject(slug, slug.replace("-", " "), "Objects", ("thing", "round", "small")) for slug in SLUGS
    }
    icons = [
        Icon(slug, art.style, synthetic_svg(i, j))
        for j, art in enumerate(ART_SETS)
        for i, slug in enumerate(SLUGS)
    ]
    return Store(subjects, icons)


@pytest.fixture(scope="session")
def pictures(store: Store) -> Pictures:
    pixels = render_all([icon.svg for icon in store.icons], variants=2)
    return Pictures(torch.from_numpy(pixels), store.icons, store.subjects)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer trained on the test's own words, in glyph's layout."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    words.train_from_iterator([" ".join(SLUGS), "a emoji style background noto blue"], trainer)
    words.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", 1), ("<|startoftext|>", 0), trim_offsets=False, add_prefix_space=False
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=32,
    )
    fast.save_pretrained(folder)
    return folder
