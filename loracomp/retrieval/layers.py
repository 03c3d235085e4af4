"""The layers of an open LoRA file by position in the site table, and the file's identity, in one pass.

Small files are read and hashed in one piece and their factors are views of it: with a hundred layers of
a few kilobytes, calls cost more than bytes. Large files are read tensor by tensor.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from loracomp.errors import FormatError
from loracomp.formats.gate import TensorInfo
from loracomp.formats.matching import Found, Match
from loracomp.formats.pieces import split
from loracomp.formats.reading import RANK, unusable
from loracomp.formats.scales import Stated, stated
from loracomp.formats.source import Source
from loracomp.formats.updates import UnusableError, low_rank, read, shaped, strength
from loracomp.lowrank import LowRank
from loracomp.retrieval.sites import SiteTable

_SMALL = 64 << 20
_FAST = (torch.float16, torch.bfloat16, torch.float32)


def read_layers(source: Source, matched: Match, table: SiteTable) -> tuple[dict[int, LowRank], str]:
    """Layers by position, and SHA-256 over the tensor bytes, hexadecimal.

    Values are not looked at where that takes an extra pass; see :func:`check_values`.

    Raises:
        FormatError: A rank beyond the limit, or values that cannot be brought into factors.
    """
    if source.header.size > _SMALL:
        source.start_hash()
        layers = _one_by_one(source, matched, table, None)
        return layers, source.content_hash()
    content = source.content()
    identity = hashlib.sha256(content.numpy().data).hexdigest()
    return _one_by_one(source, matched, table, content), identity


def _one_by_one(
    source: Source, matched: Match, table: SiteTable, content: Tensor | None
) -> dict[int, LowRank]:
    says = stated(source.metadata, source.path)
    layers: dict[int, LowRank] = {}
    for item in matched.found:
        try:
            for path, part in split(_layer(source, item, says, content), item.module).items():
                if table.index[path] in layers:
                    raise FormatError(f"{source.label}: the layer {path} is there twice; keep one")
                layers[table.index[path]] = part
        except UnusableError as error:
            raise unusable(source, error) from None
    return layers


def check_values(source: Source, matched: Match) -> None:
    """Raises :class:`FormatError` naming the first tensor that holds NaN or infinite values, if one does."""
    says = stated(source.metadata, source.path)
    for item in matched.found:
        try:
            read(source, item, says)
        except UnusableError as error:
            raise unusable(source, error) from None


def _layer(source: Source, item: Found, says: Stated, content: Tensor | None) -> LowRank:
    plain = item.algebra == "lora" and item.keys.keys() <= {"up", "down", "alpha"}
    fast = all(source.tensors[item.keys[role]].dtype in _FAST for role in ("up", "down")) if plain else False
    if content is None or not fast or item.rank > source.limits.rank:
        return low_rank(item, read(source, item, says), RANK)[0]
    up, down = (_view(source, content, source.tensors[item.keys[role]]) for role in ("up", "down"))
    if up.ndim != down.ndim:
        up, down = up.flatten(1), down.flatten(1)
    return shaped(LowRank(down, up, strength(source, item, says)), item.module.shape)


def _view(source: Source, content: Tensor, info: TensorInfo) -> Tensor:
    begin = info.begin - source.header.data_begin
    values = content[begin : begin + info.end - info.begin]
    if begin % info.dtype.itemsize:
        values = values.clone()
    return values.view(info.dtype).view(info.shape)
