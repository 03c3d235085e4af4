"""What methods have to know about adapters, found once and written into the program's options.

A method says what it needs by the name of a keyword argument that is a key of :data:`FACTS`. Methods stay
pure, and a recipe that holds the options repeats an image without measuring anything again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.fusion.plan import CachePlan
from loracomp.fusion.program import METHODS, Program
from loracomp.fusion.prompt_aware import ABSENT, importance_of
from loracomp.fusion.roles import SUBJECT
from loracomp.pipeline.layers import base_of
from loracomp.pipeline.measured import recall

Progress = Callable[[int, int], None]
_TAGS = "modelspec.tags"
_MANY = 100


@dataclass(frozen=True)
class Question:
    """What a fact is asked about.

    Attributes:
        pipe: The pipeline, without adapters.
        prompt: What will be drawn.
        adapters: Those that the method will see.
        measure: The method's option ``measure``, its default included; empty where it has none.
        folders: Where measurements may lie.
        progress: Told of the steps of sampling; None where nothing may be sampled.
    """

    pipe: Any
    prompt: str
    adapters: Sequence[Adapter]
    measure: str
    folders: tuple[Path, ...]
    progress: Progress | None


def resolve(
    pipe: Any,
    prompt: str,
    adapters: Sequence[Adapter],
    program: Program,
    *,
    folders: Iterable[Path] = (),
    progress: Progress | None = None,
) -> Program:
    """The program with every fact that its method takes and that its options do not hold yet.

    A method that says when features are renewed gets a cache, where the program has none. What was measured
    before is taken from the sidecars. What is missing counts as unknown, or is sampled now and remembered,
    which takes as long as drawing some dozens of images per adapter.

    Args:
        pipe: The pipeline, without adapters.
        prompt: What will be drawn.
        adapters: In the order of the program's weights.
        program: The program.
        folders: Where measurements may lie besides the cache, usually the folders of the adapters' files.
        progress: Called with (runs done, runs in all) while an adapter is sampled; None samples nothing.
    """
    parameters = signature(METHODS[program.method]).parameters
    named = {n: p for n, p in parameters.items() if p.kind is Parameter.KEYWORD_ONLY}
    missing = [name for name in named if name in FACTS and program.options.get(name) is None]
    seen = [a for i, a in enumerate(adapters) if not a.accelerator and i not in program.always]
    if missing and seen:
        default = named["measure"].default if "measure" in named else ""
        how = str(program.options.get("measure", default))
        question = Question(pipe, prompt, seen, how, tuple(folders), progress)
        found = {name: FACTS[name](question) for name in missing}
        program = replace(program, options={**program.options, **found})
    always = tuple(i for i, a in enumerate(adapters) if a.accelerator or i in program.always)
    whole = replace(program, weights=(1.0,) * len(adapters), always=always, profiles=())
    if program.cache is None and whole.table(_MANY).refresh is not None:
        program = replace(program, cache=CachePlan())
    return program


def resolve_all(
    pipe: Any,
    prompt: str,
    adapters: Sequence[Adapter],
    method: Program | str | Sequence[Program],
    *,
    folders: Iterable[Path] = (),
    progress: Progress | None = None,
) -> tuple[Program, ...]:
    """:func:`resolve` for one program, the name of a method, or one program per image."""
    if isinstance(method, str):
        method = Program(method)
    programs = (method,) if isinstance(method, Program) else tuple(method)
    places = tuple(folders)
    return tuple(
        resolve(pipe, prompt, adapters, program, folders=places, progress=progress) for program in programs
    )


def _bands(question: Question) -> list[str]:
    """``high``, ``low`` or ``unknown`` per adapter."""
    return [_band(question, adapter) for adapter in question.adapters]


def _band(question: Question, adapter: Adapter) -> str:
    # Sampling composes, and composing asks for facts.
    from loracomp.pipeline.profiling import profile

    pipe, folders, progress = question.pipe, question.folders, question.progress
    if progress is None:
        known = recall(adapter, base_of(pipe), folders)
    else:
        known = profile(pipe, adapter, folders=folders, progress=progress)
    return known.frequency.band if known and known.frequency else "unknown"


def _roles(question: Question) -> list[str]:
    """The first tag of each header; without any subject among them, the first adapter is taken for one."""
    words = [a.metadata.get(_TAGS, "").split(",")[0].strip().lower() for a in question.adapters]
    if SUBJECT not in words:
        words[:1] = [SUBJECT][: len(words)]
    return [word or "style" for word in words]


def _importance(question: Question) -> list[float]:
    """How much of the prompt each adapter stands for; the mean of the others where it has no words."""
    found = [_share(question, adapter) if adapter.trigger_words else None for adapter in question.adapters]
    told = [value for value in found if value is not None]
    middle = sum(told) / len(told) if told else 1.0
    return [round(middle if value is None else value, 4) for value in found]


FACTS: dict[str, Callable[[Question], list[Any]]] = {
    "bands": _bands,
    "importance": _importance,
    "roles": _roles,
}
"""By name of the keyword argument of a method."""


def _share(question: Question, adapter: Adapter) -> float:
    """Importance of one adapter in the prompt (arXiv:2606.03792, §3)."""
    words = adapter.trigger_words
    rest = without(question.prompt, words)
    if question.measure == "ablated" and not re.search(r"\w", rest):
        return ABSENT
    texts = [question.prompt, rest or question.prompt, " ".join(words)]
    whole, left, alone = _pooled(question.pipe, texts)
    return importance_of(whole, left, alone, question.measure)


def without(prompt: str, words: Iterable[str]) -> str:
    """The prompt without the given words, whole words only, in any case."""
    for word in words:
        prompt = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())


@torch.inference_mode()
def _pooled(pipe: Any, texts: Sequence[str]) -> Tensor:
    """Mean of the first text encoder's last states over each text's own tokens, shape (texts, width).

    The released code averages over padding too, which makes all short prompts alike.
    """
    encoder = pipe.text_encoder
    tokens = pipe.tokenizer(
        list(texts), padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True,
        return_tensors="pt",
    )  # fmt: skip
    device = getattr(pipe, "_execution_device", encoder.device)
    states = encoder(tokens.input_ids.to(device)).last_hidden_state.float().cpu()
    kept = tokens.attention_mask[..., None].float()
    return (states * kept).sum(1) / kept.sum(1)
