"""Lists and presets of A1111's LoRA Block Weight extension (``lbw=``) as factors of our blocks.

The extension numbers a UNet's blocks on the way down (IN00, the first convolution, then every pair of resnet
and attention and every sampler), in the middle (M00) and on the way up (OUT00 …), with BASE, the text
encoder, in front. A list has one number per block, or one per block that has attention; blocks that a list
leaves out are silent. FLUX lists are CLIP, T5, IN, the double blocks, the single blocks, OUT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loracomp.errors import UsageError
from loracomp.fusion import blocks

_WHOLE = {"NONE": 0.0, "ALL": 1.0, "ALL0.5": 0.5}
PRESETS = (*_WHOLE, "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL")
_TEXT = "text"


def blocks_of(lbw: str, paths: Iterable[str]) -> dict[str, float]:
    """Factors by block name that an ``lbw`` value stands for.

    Args:
        lbw: A preset, or numbers with commas between them.
        paths: Module paths of all layers of the base.

    Raises:
        UsageError: No such preset, or not as many numbers as the base has blocks.
    """
    paths = tuple(paths)
    if lbw in _WHOLE:
        return {blocks.ANY: _WHOLE[lbw]}
    if any(path.startswith("transformer.") for path in paths):
        return _listed(lbw, _flux(paths), ())
    everything = _unet(paths)
    attention = [name for name in everything if _has_attention(name, paths)]
    preset = _preset(lbw, attention)
    return preset if preset is not None else _listed(lbw, everything, attention)


def _preset(lbw: str, attention: list[str]) -> dict[str, float] | None:
    """A preset; those of halves split the blocks with attention in the middle, as for SD1.5 and SDXL."""
    down = [name for name in attention if name.startswith("down")]
    up = [name for name in attention if name.startswith("up")]
    shallow, deep = down[: len(down) // 2], down[len(down) // 2 :]
    first, last = up[: len(up) // 2], up[len(up) // 2 :]
    chosen = {
        "INS": shallow, "IND": deep, "INALL": down, "MIDD": [*deep, "mid", *first],
        "OUTD": first, "OUTS": last, "OUTALL": up,
    }.get(lbw)  # fmt: skip
    if chosen is None:
        return None
    return {blocks.ANY: 0.0, _TEXT: 1.0} | dict.fromkeys(" ".join(chosen).split(), 1.0)


def _listed(lbw: str, everything: list[str], attention: Iterable[str]) -> dict[str, float]:
    named = {len(names): names for names in ([_TEXT, *attention], everything)}
    parts = [part.strip() for part in lbw.split(",")]
    if len(parts) == 1:
        raise UsageError(f"lbw={lbw}: no such preset here; there are {', '.join(PRESETS)}, for UNets")
    if len(parts) not in named:
        sizes = " or ".join(str(size) for size in sorted(named) if size > 1)
        raise UsageError(f"lbw={lbw}: {len(parts)} numbers, where this base has {sizes} blocks")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        wrong = next(part for part in parts if not part.replace(".", "").lstrip("-").isdigit())
        raise UsageError(f"lbw={lbw}: {wrong!r} is not a number; random ones are not supported") from None
    factors = {blocks.ANY: 0.0}
    for names, value in zip(named[len(parts)], values, strict=True):
        factors |= dict.fromkeys(names.split(), value)
    return factors


def _unet(paths: tuple[str, ...]) -> list[str]:
    """Our names of BASE, IN00 … in the extension's order; several names where one number covers several."""
    found = [_TEXT, "unet.conv_in"]
    for level in range(_levels("down", paths)):
        found += [f"down.{level}.{pair}" for pair in range(_pairs("down", level, paths))]
        sampler = f"unet.down_blocks.{level}.downsamplers"
        found += [f"down.{level}.sampler"] * any(path.startswith(sampler) for path in paths)
    found.append("mid")
    for level in range(_levels("up", paths)):
        found += [f"up.{level}.{pair}" for pair in range(_pairs("up", level, paths))]
        found[-1] += f" up.{level}.sampler"
    return found


def _levels(side: str, paths: tuple[str, ...]) -> int:
    return len({path.split(".")[2] for path in paths if path.startswith(f"unet.{side}_blocks.")})


def _pairs(side: str, level: int, paths: tuple[str, ...]) -> int:
    """Pairs of resnet and attention in a block."""
    start = f"unet.{side}_blocks.{level}.resnets."
    return len({path[len(start) :].split(".")[0] for path in paths if path.startswith(start)})


def _has_attention(name: str, paths: tuple[str, ...]) -> bool:
    if name in (_TEXT, "unet.conv_in"):
        return False
    return any(".attentions." in path and set(name.split()) & set(blocks.names(path)) for path in paths)


def _flux(paths: tuple[str, ...]) -> list[str]:
    numbers: Mapping[str, set[int]] = {
        kind: {int(n.split(".")[1]) for path in paths for n in blocks.names(path) if _numbered(n, kind)}
        for kind in ("block", "single")
    }
    if not numbers["single"]:
        raise UsageError("lbw= is for UNets and FLUX; name the blocks, for example block.3=0.5")
    inputs = "transformer.x_embedder transformer.context_embedder transformer.time_text_embed"
    double, single = (sorted(numbers[kind]) for kind in ("block", "single"))
    return [
        "text_encoder", "text_encoder_2", inputs, *(f"block.{n}" for n in double),
        *(f"single.{n}" for n in single), "transformer.norm_out transformer.proj_out",
    ]  # fmt: skip


def _numbered(name: str, kind: str) -> bool:
    return name.startswith(f"{kind}.") and name.count(".") == 1
