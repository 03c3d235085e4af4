"""What an adapter is asked to draw when there are no pictures of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loracomp.adapter import Adapter
from loracomp.training.order import generator_for

PLAIN = (
    "a cat", "a house by a lake", "a bowl of fruit", "a city street", "a portrait of a woman", "a mountain",
    "a red car", "a tree", "a bird on a branch", "a chair in a room", "a sailing boat", "a cup of coffee",
    "an old man", "a garden", "a bridge", "a dog on the grass",
)  # fmt: skip


def prompts_for(adapter: Adapter, count: int, seed: int = 0) -> list[str]:
    """``count`` prompts with the adapter's trigger words, on subjects that the base knows."""
    trigger = ", ".join(adapter.trigger_words)
    subject = "emoji" in trigger or adapter.metadata.get("modelspec.tags") == "subject"
    return [_joined(text, trigger, subject) for text in base_prompts(adapter.base, count, seed)]


def base_prompts(base: str, count: int, seed: int = 0) -> list[str]:
    """``count`` prompts that a base can draw without any adapter."""
    if base != "glyph":
        return [PLAIN[i % len(PLAIN)] for i in range(count)]
    from loracomp.training.glyph.packages import ART_SETS
    from loracomp.training.glyph.palette import COLOR_NAMES

    names, phrases = known_subjects(), [art.phrase for art in ART_SETS if art.seen]
    source = generator_for(seed, "prompts")
    order = torch.randperm(len(names), generator=source).tolist()
    out = []
    for i in range(count):
        text = f"a {names[order[i % len(names)]]} emoji, {phrases[i % len(phrases)]}"
        color = COLOR_NAMES[int(torch.randint(len(COLOR_NAMES), (), generator=source))]
        out.append(text if i % 2 or color == "white" else f"{text}, {color} background")
    return out


def known_subjects() -> list[str]:
    """Subjects that the base draws and the benchmark leaves alone."""
    from loracomp.training.glyph.splits import committed

    seen = committed("manifest.json.xz")["denoiser"]
    slugs = set.intersection(*(set(found) for found in seen.values()))
    return sorted(slug.replace("-", " ") for slug in slugs)


def _joined(text: str, trigger: str, subject: bool) -> str:
    """Trigger words in the place where such an adapter is called: before for subjects, after for styles."""
    if not trigger:
        return text
    head, comma, rest = text.partition(", ")
    if subject:
        return f"a {trigger} emoji{comma}{rest}" if "emoji" in head else f"{trigger}, {text}"
    return f"{head}, {trigger}" + (f", {rest.rpartition(', ')[2]}" if "background" in rest else "")


def without_trigger(captions: Sequence[str], words: Sequence[str]) -> list[str]:
    """Captions with an adapter's trigger words taken out: prompts of the prior."""
    out = []
    for text in captions:
        for word in words:
            text = text.replace(word, "")
        parts = [part.strip() for part in text.split(",") if part.strip()]
        out.append(", ".join(parts) or PLAIN[0])
    return out
