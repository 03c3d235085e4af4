"""The grammar of tensor names: a module's name, then a suffix that says which factor the tensor is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SUFFIXES: dict[str, tuple[str, str]] = {
    # suffix: (role of the tensor, style of writing)
    ".lora_down.weight": ("down", "kohya"),
    ".lora_up.weight": ("up", "kohya"),
    ".lora_mid.weight": ("mid", "kohya"),
    ".lora_A.weight": ("down", "peft"),
    ".lora_B.weight": ("up", "peft"),
    ".lora_A": ("down", "peft"),
    ".lora_B": ("up", "peft"),
    ".lora.down.weight": ("down", "old"),
    ".lora.up.weight": ("up", "old"),
    ".lora_linear_layer.down.weight": ("down", "old"),
    ".lora_linear_layer.up.weight": ("up", "old"),
    ".down.weight": ("down", "old"),
    ".up.weight": ("up", "old"),
    ".alpha": ("alpha", ""),
    ".lora_B.bias": ("bias", "peft"),
    ".lora_up.bias": ("bias", "kohya"),
    ".dora_scale": ("magnitude", "kohya"),
    ".lora_magnitude_vector": ("magnitude", "peft"),
    ".lora_magnitude_vector.weight": ("magnitude", "peft"),
    ".diff": ("diff", "lycoris"),
    ".diff_b": ("bias", "lycoris"),
    ".w_norm": ("norm", "lycoris"),
    ".b_norm": ("norm_bias", "lycoris"),
    **{f".hada_{part}": (f"hada_{part}", "lycoris") for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{
        f".lokr_{part}": (f"lokr_{part}", "lycoris")
        for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")
    },
}
FOREIGN = {
    # suffix: why an adapter of weight updates cannot hold it
    ".oft_blocks": "an OFT rotation multiplies the weights",
    ".oft_diag": "an OFT rotation multiplies the weights",
    ".oft_R.weight": "an OFT rotation multiplies the weights",
    ".on_input": "an IA3 vector multiplies activations",
    ".weight": "a tensor of a model or embedding, no update",
    ".set_weight": "it replaces a weight instead of changing it",
    ".reshape_weight": "it changes the shape of a weight",
    ".a1.weight": "GLoRA multiplies the weights",
    ".a2.weight": "GLoRA multiplies the weights",
    ".b1.weight": "GLoRA multiplies the weights",
    ".b2.weight": "GLoRA multiplies the weights",
}
_BUNDLED = "bundle_emb."
_BEFORE_ADAPTER = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.")
_NAMED = re.compile(r"(?P<head>.+\.lora_(?:A|B|magnitude_vector))\.(?P<adapter>[^.]+)\.weight")


@dataclass(frozen=True)
class Key:
    """A tensor name taken apart.

    Attributes:
        text: The name as it stands in the file.
        module: What stands before the suffix.
        role: Which part of the update the tensor is (``down``, ``up``, ``alpha``, …).
        style: How the suffix is written: ``kohya``, ``peft``, ``old``, ``lycoris`` or empty.
        adapter: Adapter name inside the key, as PEFT's state dictionaries have it.
    """

    text: str
    module: str
    role: str
    style: str
    adapter: str = ""


def split(text: str) -> Key | None:
    """The parts of a tensor name; None where its suffix is none of the known ones."""
    # Most names hold none of these, and looking for them is much faster than the expression.
    named = _NAMED.fullmatch(text) if any(map(text.__contains__, _BEFORE_ADAPTER)) else None
    adapter = named["adapter"] if named else ""
    plain = f"{named['head']}.weight" if named else text
    dot = plain.find(".")
    while dot != -1:
        if (found := _SUFFIXES.get(plain[dot:])) and dot > 0:
            return Key(text, plain[:dot], *found, adapter)
        dot = plain.find(".", dot + 1)
    return None


def foreign(text: str) -> str:
    """Why a name that the grammar does not know has no place."""
    if text.startswith(_BUNDLED):
        return "an embedding bundled with the LoRA; load it as a textual inversion"
    endings = [ending for ending in FOREIGN if text.endswith(ending)]
    return FOREIGN[max(endings, key=len)] if endings else "unknown kind of tensor"


def group(texts: Iterable[str]) -> tuple[dict[str, dict[str, Key]], list[str]]:
    """Keys by module and role, and the names that are not understood (unknown suffix, second adapter)."""
    modules: dict[str, dict[str, Key]] = {}
    unknown: list[str] = []
    for text in texts:
        key = split(text)
        if key is None or key.role in modules.setdefault(key.module, {}):
            unknown.append(text)
        else:
            modules[key.module][key.role] = key
    return {module: roles for module, roles in modules.items() if roles}, unknown
